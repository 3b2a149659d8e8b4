"Real files behind the loaders. Needs the folder named by ESMA_NB_DATA; the rest needs a process of its own."
import json, os, subprocess, sys
from pathlib import Path
import pytest
from esma_nb.datasets import load_rows, mkqa_langs, train_and_held_out
from esma_nb.rows import question_key

data = os.environ.get('ESMA_NB_DATA')
real = pytest.mark.skipif(not data, reason='ESMA_NB_DATA names no folder with real question sets')

def lines(name):
    with Path(data, name).open(encoding='utf-8') as f: return [json.loads(l) for l in f]

# what to load -> read, kept, duplicate, answerless, other_split
expected = [
    ('trivia_qa', 'train', 'en', None, (8837, 8833, 4, 0, 0)),
    ('trivia_qa', 'validation', 'en', None, (3000, 3000, 0, 0, 0)),
    ('nq_open', 'train', 'en', None, (8757, 8757, 0, 0, 0)),
    ('nq_open', None, 'en', None, (3610, 3610, 0, 0, 0)),
    ('web_questions', 'test', 'en', None, (2032, 2032, 0, 0, 0)),
    ('freebase_qa', 'eval', 'en', None, (1500, 1500, 0, 0, 0)),
    ('mkqa', None, 'en', None, (800, 800, 0, 0, 0)),
    ('mkqa', None, 'zh_cn', None, (800, 798, 2, 0, 0)),
    ('mkqa', 'train', 'ko', 'mkqa/original_26langs.jsonl', (11, 7, 0, 4, 0)),
    ('fictional_qa', 'train', 'en', None, (95, 10, 54, 0, 31)),
    ('fictional_qa', 'validation', 'en', None, (95, 31, 54, 0, 10)),
]

@real
@pytest.mark.parametrize('dataset, split, lang, file, want', expected)
def test_counts(dataset, split, lang, file, want):
    rows, counts = load_rows(dataset, split, lang, Path(data, file or ''))
    assert tuple(counts[k] for k in 'read kept duplicate answerless other_split'.split()) == want
    assert len({r['question_id'] for r in rows}) == len(rows) == counts['drawn'] == want[1]
    for r in rows:
        assert set(r) == {'question_id', 'question', 'answers'} and isinstance(r['question_id'], str)
        assert r['question'].strip() and r['answers'] and all(isinstance(a, str) and a.strip() for a in r['answers'])
        assert len(set(r['answers'])) == len(r['answers'])

@real
def test_traps():
    rows, _ = load_rows('trivia_qa', 'train', data_dir=data)
    assert max(len(r['answers']) for r in rows) == 372
    assert sum('\x85' in r['question'] for r in rows) == sum('\x85' in r['question'] for r in lines('trivia_qa/train.jsonl')) == 3
    assert len({r['url'] for r in lines('web_questions/test.jsonl')}) == 1200
    ids = [r['question_id'] for r in load_rows('mkqa', data_dir=data)[0]]
    assert ids[0] == str(lines('mkqa/train_12langs.jsonl')[0]['example_id']) and any(i.startswith('-') for i in ids)

@real
@pytest.mark.parametrize('lang', mkqa_langs)
def test_every_language(lang):
    original = Path(data, 'mkqa/original_26langs.jsonl')
    assert load_rows('mkqa', lang=lang, data_dir=original)[1]['answerless'] == 4
    assert len(load_rows('mkqa', lang=lang, data_dir=original, clean=False)[0]) == 11

@real
def test_one_event_has_no_halves(tmp_path):
    one = [r for r in lines('fictional_qa/fict_qa.jsonl') if r['event_id'] == 'event_000']
    (tmp_path/'fict_qa.jsonl').write_text('\n'.join(map(json.dumps, one)), encoding='utf-8')
    with pytest.raises(ValueError, match='halved by event'): load_rows('fictional_qa', 'train', data_dir=tmp_path)

@real
@pytest.mark.parametrize('dataset, file, train, held, overlap', [
    ('trivia_qa', '', 8830, 200, 3), ('trivia_qa', 'trivia_qa/train.jsonl', 8633, 200, 0), ('nq_open', '', 8757, 200, 0),
    ('web_questions', '', 1832, 200, 0), ('freebase_qa', '', 1300, 200, 0), ('mkqa', '', 600, 200, 0)])
def test_held_out(dataset, file, train, held, overlap):
    rows, val, counts = train_and_held_out(dataset, data_dir=Path(data, file), num_val_samples=200)
    assert (len(rows), len(val), counts['overlap']) == (train, held, overlap)
    assert not {question_key(r['question']) for r in rows} & {question_key(r['question']) for r in val}

@real
def test_same_rows_from_parquet(tmp_path):
    import pandas as pd
    pd.DataFrame(lines('trivia_qa/validation.jsonl')[:100]).to_parquet(tmp_path/'validation-00000-of-00001.parquet')
    assert load_rows('trivia_qa', data_dir=tmp_path)[0] == load_rows('trivia_qa', data_dir=data)[0][:100]

def test_import_is_light():
    code = "import sys, esma_nb.datasets; print([m for m in ('datasets', 'huggingface_hub', 'pyarrow', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'

@pytest.mark.parametrize('dataset', ['nq_open', 'mkqa'])
def test_hub_out_of_reach(dataset, tmp_path):
    code = f"from esma_nb.datasets import load_rows\ntry: load_rows({dataset!r})\nexcept ConnectionError as e: print(e)"
    env = dict(os.environ, HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path))
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
    assert '--data_dir' in run.stdout and len(run.stdout.splitlines()) == 1 and not run.stderr

def test_hub_rows_like_local_ones(tmp_path, monkeypatch):
    "What `datasets` hands out for MKQA: class labels as numbers, nulls, and aliases where there are none."
    from datasets import ClassLabel, Dataset, Features, List, Value
    answer = dict(type=ClassLabel(names=['entity', 'unanswerable']), entity=Value('string'), text=Value('string'), aliases=List(Value('string')))
    features = Features(dict(example_id=Value('string'), query=Value('string'), queries=dict(en=Value('string')), answers=dict(en=List(answer))))
    asked = [dict(example_id='-5', query='who?', queries=dict(en='who?'), answers=dict(en=[dict(type='entity', entity='Q7259', text='Ada', aliases=['Ada', 'Lovelace'])])),
        dict(example_id='6', query='why?', queries=dict(en='why?'), answers=dict(en=[dict(type='unanswerable', entity=None, text=None, aliases=None)]))]
    monkeypatch.setattr('datasets.load_dataset', lambda *a, **kw: Dataset.from_list(asked, features=features))
    rows, counts = load_rows('mkqa')
    assert rows == [dict(question_id='-5', question='who?', answers=['Ada', 'Lovelace'])] and counts['answerless'] == 1
