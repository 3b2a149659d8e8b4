"Logs of other tools on bad days: damaged, hostile or unfinished files end in one line, and what is imported goes through the other commands"
import io,json,struct,zipfile,zlib
import pytest
from fastcore.test import expect_fail
from esma_nb.core.cli import run_command
from esma_nb.evaluation.compare import compare
from esma_nb.evaluation.export import export
from esma_nb.evaluation.records import load_records
from esma_nb.integrations.imports import import_records
from esma_nb.integrations.inspect_logs import from_inspect

def sample(i, reply, value, epoch=1):
    return dict(id=i, epoch=epoch, input=f'What is {i}?', target=str(i), output=dict(completion=reply, choices=[{}]), scores=dict(match=dict(value=value)), events=['x'*500])
header = dict(version=2, status='success', eval=dict(dataset=dict(sample_ids=[1, 2])))

def write_eval(path, samples, **members):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for s in samples: z.writestr(f"samples/{s['id']}_epoch_{s['epoch']}.json", json.dumps(s))
        for name,text in (members or {'header.json': json.dumps(header)}).items(): z.writestr(name, text)
    return path

def zstd_zip(path, members): # The standard library of Python 3.11 writes no Zstandard: by hand, as in the ZIP specification
    import pyarrow as pa
    out,central = io.BytesIO(),b''
    for name,text in members.items():
        data,name = text.encode(),name.encode()
        packed = pa.Codec('zstd').compress(data, asbytes=True)
        common = struct.pack('<5H3L2H', 63, 0, 93, 0, 33, zlib.crc32(data), len(packed), len(data), len(name), 0)
        central += b'PK\x01\x02' + struct.pack('<H', 63) + common + struct.pack('<3H2L', 0, 0, 0, 0, out.tell()) + name
        out.write(b'PK\x03\x04' + common + name + packed)
    end = struct.pack('<4H2LH', 0, 0, len(members), len(members), len(central), out.tell(), 0)
    path.write_bytes(out.getvalue() + central + b'PK\x05\x06' + end)
    return path

def test_zstandard(tmp_path):
    both = [sample(1, '1', 'C'), sample(2, '3', 'I')]
    path = zstd_zip(tmp_path/'log.eval', {f"samples/{s['id']}_epoch_1.json": json.dumps(s) for s in both} | {'header.json': json.dumps(header)})
    records,about = from_inspect(path)
    assert [r.correct for r in records]==[True, False] and '2 of 2 samples' in about

def test_interrupted_run(tmp_path):
    started = {k: v for k,v in header.items() if k!='status'}
    records,about = from_inspect(write_eval(tmp_path/'log.eval', [sample(1, '1', 'C')], **{'_journal/start.json': json.dumps(started)}))
    assert len(records)==1 and 'status started, 1 of 2 samples' in about

def test_damaged(tmp_path):
    whole = write_eval(tmp_path/'log.eval', [sample(1, '1', 'C')]).read_bytes()
    (tmp_path/'torn.eval').write_bytes(whole[:200])
    (tmp_path/'flipped.eval').write_bytes(whole[:60] + bytes(x^255 for x in whole[60:80]) + whole[80:])
    for name in ('torn', 'flipped'):
        with expect_fail(ValueError, contains='damaged'): from_inspect(tmp_path/f'{name}.eval')

def test_bomb(tmp_path):
    path = write_eval(tmp_path/'log.eval', [sample(1, '1', 'C')])
    data = bytearray(path.read_bytes())
    at = data.index(b'PK\x01\x02')
    data[at+24:at+28] = struct.pack('<L', 3_000_000_000) # The length that the first member claims to have
    path.write_bytes(data)
    with expect_fail(ValueError, contains='would unpack to 3.0 GB'): from_inspect(path)

def test_the_other_commands_read_what_was_imported(tmp_path):
    for epoch in (1, 2):
        log = write_eval(tmp_path/'log.eval', [sample(1, '1', 'C', epoch), sample(2, '2' if epoch==2 else '3', 'C' if epoch==2 else 'I', epoch)])
        import_records(str(log), str(tmp_path/f'{epoch}.jsonl'), epoch=epoch)
    compare([str(tmp_path/'1.jsonl'), str(tmp_path/'2.jsonl')])
    export(str(tmp_path/'1.jsonl'), str(tmp_path/'1.csv'))
    assert len((tmp_path/'1.csv').read_text().splitlines())==3

@pytest.mark.parametrize('name,text,words,line', [
    ('a.csv', 'prompt,said\nHow?,So\n', [], 'no column response: the columns are prompt, said;'),
    ('a.csv', 'prompt,response,grade\nHow?,So,.4\n', ['--correct_column', 'grade'], 'as --threshold'),
    ('a.csv', 'prompt,response,correct\nHow?,So,1\n', ['--scorer', 'match'], 'has no use for --scorer'),
    ('a.csv', 'prompt,response,correct\nHow?,So,maybe\n', [], "row 1: the grade 'maybe'"),
    ('a.json', '{"version": 2, "status": "success", "samples": [3]}', [], 'no log of Inspect'),
    ('a.eval', 'PK', [], 'is damaged'),
    ('a.pkl', '\x80', [], 'is a pickle')])
def test_one_line(tmp_path, capsys, name, text, words, line):
    (tmp_path/name).write_text(text, encoding='latin-1')
    with pytest.raises(SystemExit) as stopped: run_command(import_records.__wrapped__, [str(tmp_path/name), str(tmp_path/'r.jsonl'), *words], 'esma_nb_import')
    said = capsys.readouterr().err
    assert stopped.value.code==2 and line in said and said.count('\n')==1, said

def test_missing_values(tmp_path):
    rows = [dict(question='Capital of Peru?', response=None, Perplexity=1., correct=None), dict(question='Capital of Chad?', response='', Perplexity=None, correct='')]
    (tmp_path/'t.jsonl').write_text(''.join(json.dumps(r)+'\n' for r in rows))
    import_records(str(tmp_path/'t.jsonl'), str(tmp_path/'r.jsonl'))
    assert [(r.failed, r.correct, r.signals) for r in load_records(tmp_path/'r.jsonl')]==[('no reply', None, dict(Perplexity=-1.)), ('no reply', None, dict(Perplexity=None))]
