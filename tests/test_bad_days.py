"Bad days of a training run: a full disk, cut and flipped bytes, torn lines, clocks that jump, a command that is started twice."
import errno,io,json,os,random,resource,shutil,signal,subprocess,sys
from contextlib import contextmanager,redirect_stdout
from copy import deepcopy
from pathlib import Path
import pytest,torch
from safetensors.torch import load_file,save_file
from esma_nb.evaluation.evaluate import eval_model
from esma_nb.evolution.es import MasterWeights
from esma_nb.evolution.checkpoint import resume_weights,save_checkpoint
from esma_nb.engines.models import cast_parameters,load_model
from esma_nb.engines.saving import fingerprint
from esma_nb.evolution.optimizers import Adam
from esma_nb.patching.replay import replay_run
from esma_nb.core.files import append_lines,read_lines
from esma_nb.core.manifests import write_manifest
from esma_nb.core.runs import lock_run
from esma_nb.evolution.train import train
from kills import Run,iterations

TINY = dict(sigma=.04, population_size=4, num_data_per_iteration=8, num_val_samples=10, num_iterations=4, model_save_interval=1, device='cpu', seed=5)

def run(out, **kw): # What `train` gives and says
    with redirect_stdout(io.StringIO()) as said: result = train(**TINY | kw, output_dir=str(out))
    return result,said.getvalue()

def digest(out): return json.loads((out/'summary.json').read_text())['model_sha256']

def unfinish(out): # As it was in the last iteration
    (out/'summary.json').unlink(), shutil.rmtree(out/'model'), (out/'records'/'iter000004.jsonl').unlink()
    lines = (out/'journal.jsonl').read_bytes().splitlines(keepends=True)
    (out/'journal.jsonl').write_bytes(b''.join(lines[:3]))

def is_one_line(e): return '\n' not in str(e.value)

def leftovers(out): return [str(p) for p in out.rglob('.*') if p.name!='.lock']

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')/'run'
    run(out, keep_checkpoints=0)
    assert all(any(json.loads(l)['coefficients']) for l in (out/'journal.jsonl').open()), 'a run in which nothing moves proves nothing'
    return out

@pytest.fixture
def cut_off(whole, tmp_path):
    "A copy of a run that was killed in its last iteration; its metrics' line was written, its journal's was not."
    shutil.copytree(whole, tmp_path/'run')
    unfinish(tmp_path/'run')
    return tmp_path/'run'

@pytest.fixture(scope='module')
def base():
    model,tokenizer = load_model('demo', 'float32', 'cpu')
    return model,tokenizer,{n: w.clone() for n,w in MasterWeights(model).weights.items()}

def resumed(base, out)->tuple: # Fingerprint of the weights where the journal ends, and what was said on the way
    model,_,weights = base
    master,said = MasterWeights(model),[]
    for n,w in weights.items(): master.weights[n].copy_(w)
    resume_weights(master, out/'checkpoints', read_lines(out/'journal.jsonl'), said.append)
    return fingerprint(master.state()),said

# ---- A full disk

@contextmanager
def room_for(n): # No file may grow beyond `n` bytes; the error is that of a full disk but for its number
    soft,hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

@pytest.mark.parametrize('room', [0, 100, 10_000, 100_000, 2_000_000])
def test_a_checkpoint_that_does_not_fit(base, tmp_path, room):
    model,tokenizer,_ = base
    master = MasterWeights(model)
    save_checkpoint(tmp_path/'iter000001', model, tokenizer, master, 1)
    before = {p.name: p.read_bytes() for p in (tmp_path/'iter000001').iterdir()}
    with room_for(room), pytest.raises(OSError, match='make space') as e: save_checkpoint(tmp_path/'iter000002', model, tokenizer, master, 2)
    assert is_one_line(e) and [p.name for p in tmp_path.iterdir()]==['iter000001']
    assert {p.name: p.read_bytes() for p in (tmp_path/'iter000001').iterdir()}==before
    save_checkpoint(tmp_path/'iter000002', model, tokenizer, master, 2)

def test_a_memory_of_the_optimizer_that_does_not_fit(base, tmp_path):
    model,tokenizer,_ = base
    master = MasterWeights(model)
    state = {f'{k}/{n}': w.view(-1).clone() for n,w in master.weights.items() for k in ('mean', 'square')}
    with room_for(4_000_000), pytest.raises(OSError, match='make space') as e: save_checkpoint(tmp_path/'iter000001', model, tokenizer, master, 1, state)
    assert is_one_line(e) and not [*tmp_path.iterdir()]

@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
def test_a_line_that_does_not_fit(tmp_path):
    (tmp_path/'journal.jsonl').symlink_to('/dev/full')
    with pytest.raises(OSError, match='make space') as e: append_lines(tmp_path/'journal.jsonl', [dict(iteration=1)])
    assert is_one_line(e) and 'journal.jsonl' in str(e.value)

@contextmanager
def syncs(monkeypatch, limit=None): # A list that grows with each sync; at the one numbered `limit` the disk says no
    real,calls = os.fsync,[]
    def sync(fd):
        calls.append(fd)
        if len(calls)==limit: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)
    with monkeypatch.context() as m:
        m.setattr(os, 'fsync', sync)
        yield calls

def test_a_disk_that_fills_at_any_moment(whole, tmp_path, monkeypatch):
    "Every write of a run is followed by a sync; the one at which the disk says no is moved through the run."
    with syncs(monkeypatch) as calls: run(tmp_path/'count')
    for limit in sorted({1, 2, len(calls), *random.Random(2).sample(range(3, len(calls)), 6)}):
        out = tmp_path/f'run{limit}'
        with syncs(monkeypatch, limit), pytest.raises(OSError, match='No space left on device.*make space') as e: run(out)
        assert is_one_line(e) and not leftovers(out), limit
        run(out)
        assert digest(out)==digest(whole) and iterations(out/'journal.jsonl')==iterations(out/'metrics.jsonl')==[1, 2, 3, 4], limit

def test_a_disk_that_is_really_full(tmp_path):
    "A tmpfs of 5 MB in a namespace of its own, which is then made larger; some machines do not allow it."
    train = f"{sys.executable} -m esma_nb.evolution.train --output_dir {tmp_path}/disk/run --num_iterations 2 --num_data_per_iteration 8 --population_size 4 --num_val_samples 10 --model_save_interval 1"
    script = f"mkdir {tmp_path}/disk && mount -t tmpfs -o size=5m tmpfs {tmp_path}/disk || exit 77; {train}; echo status $?; find {tmp_path}/disk -name '.*draft'; mount -o remount,size=50m {tmp_path}/disk; {train}; echo status $?"
    if not shutil.which('unshare'): pytest.skip('needs unshare')
    done = subprocess.run(['unshare', '-rm', 'sh', '-c', script], capture_output=True, text=True, env=dict(os.environ, TQDM_DISABLE='1', OMP_NUM_THREADS='1'))
    if done.returncode==77 or 'status' not in done.stdout: pytest.skip('may not mount')
    assert done.stderr.count('\n')==1 and 'No space left on device' in done.stderr and 'make space' in done.stderr, done.stderr
    first,second = done.stdout.split('status 2\n')
    assert second.endswith('status 0\n') and 'going on after iteration' in second and '/.' not in second, done.stdout

# ---- Cut and flipped bytes

def test_a_checkpoint_that_was_cut_at_twenty_places(whole, base, tmp_path):
    out,rng = tmp_path/'run',random.Random(0)
    shutil.copytree(whole, out)
    newest = out/'checkpoints'/'iter000003'
    files = sorted(newest.iterdir())
    places = [newest/'model.safetensors']*12 + [newest/'manifest.json']*2 + rng.choices(files, k=6)
    for path in places:
        data = path.read_bytes()
        os.truncate(path, at := rng.randrange(len(data)))
        home,said = resumed(base, out)
        assert home==digest(whole), (path, at)
        assert len(said)==1 and path.name in said[0] and 'going back' in said[0] and '\n' not in said[0], (path, at, said)
        path.write_bytes(data)
    assert resumed(base, out)==(digest(whole), [])

def in_shards(folder, n=3): # The same checkpoint, as a large model's is saved
    tensors = load_file(folder/'model.safetensors')
    names,digest_then = sorted(tensors),json.loads((folder/'manifest.json').read_text())['model_sha256']
    (folder/'model.safetensors').unlink(), (folder/'manifest.json').unlink()
    files = {k: f'model-{i+1:05d}-of-{n:05d}.safetensors' for i in range(n) for k in names[i::n]}
    for f in set(files.values()): save_file({k: tensors[k] for k in names if files[k]==f}, folder/f, metadata=dict(format='pt'))
    (folder/'model.safetensors.index.json').write_text(json.dumps(dict(metadata={}, weight_map=files)))
    write_manifest(folder, iteration=3, model_sha256=digest_then)

def flip(path, at, bit):
    data = bytearray(path.read_bytes())
    data[at] ^= 1<<bit
    path.write_bytes(data)

def test_a_flipped_byte_in_a_shard(whole, base, tmp_path):
    out,rng = tmp_path/'run',random.Random(1)
    shutil.copytree(whole, out)
    newest = out/'checkpoints'/'iter000003'
    in_shards(newest)
    assert resumed(base, out)==(digest(whole), [])
    for path in [p for p in sorted(newest.iterdir()) if p.name!='manifest.json']:
        for at in {0, path.stat().st_size-1, *(rng.randrange(path.stat().st_size) for _ in range(4))}:
            flip(path, at, bit := rng.randrange(8))
            home,said = resumed(base, out)
            assert home==digest(whole) and len(said)==1 and path.name in said[0] and 'going back' in said[0], (path, at, said)
            flip(path, at, bit)

def test_a_flipped_bit_in_a_manifest(whole, base, tmp_path):
    "Also where it changes a fact and no fingerprint, the number of the iteration above all."
    out,wrong = tmp_path/'run',[]
    shutil.copytree(whole, out)
    path = out/'checkpoints'/'iter000003'/'manifest.json'
    data = path.read_bytes()
    facts = data.index(b'"files"')+10
    for at in [*range(facts), *range(facts, len(data), 29)]:
        for bit in (0, 6) if at<facts else (1,):
            flip(path, at, bit)
            where,changed = f"bit {bit} of byte {at}, {data[max(0, at-14):at+4]!r}",readable(path)!=json.loads(data)
            try: home,said = resumed(base, out)
            except Exception as e: wrong.append(f"{where}: {e!r}")
            else:
                if home!=digest(whole): wrong.append(f"{where}: other weights, and only said {said}")
                elif changed and not (len(said)==1 and 'manifest.json' in said[0]): wrong.append(f"{where}: nothing was noticed, {said}")
            path.write_bytes(data)
    assert not wrong, f"{len(wrong)} flips: " + '; '.join(wrong[:5])

def readable(path): # Its JSON, or None
    try: return json.loads(path.read_text(encoding='utf-8'))
    except ValueError: return None

@pytest.mark.parametrize('name', ['args.json', 'summary.json'])
@pytest.mark.parametrize('damage', [lambda d: d[:len(d)//2], lambda d: b'', lambda d: d.replace(b'"', b'\x00', 1), lambda d: d.replace(b'"', b'\xff', 1)], ids=['half', 'empty', 'zero', 'not utf-8'])
def test_a_damaged_book_is_named_or_made_again(whole, tmp_path, name, damage):
    shutil.copytree(whole, tmp_path/'run')
    path = tmp_path/'run'/name
    path.write_bytes(damage(path.read_bytes()))
    try: run(tmp_path/'run')
    except (ValueError, OSError) as e: assert name in str(e) and '\n' not in str(e)
    assert name!='summary.json' or readable(path) is None or digest(tmp_path/'run')==digest(whole)

# ---- Lines

def test_a_journal_that_was_torn_at_any_byte(whole, base, tmp_path):
    out = tmp_path/'run'
    shutil.copytree(whole, out)
    path = out/'journal.jsonl'
    data = path.read_bytes()
    last = data[:-1].rindex(b'\n')+1
    lines = read_lines(path)
    for at in range(last, len(data)):
        path.write_bytes(data[:at])
        complete = at==len(data)-1 # Only the newline is missing
        assert read_lines(path)==lines[:3+complete]
        if complete or at%50==0:
            append_lines(path, lines[3+complete:])
            assert path.read_bytes()==data

@pytest.mark.parametrize('book', ['journal.jsonl', pytest.param('metrics.jsonl', marks=pytest.mark.skipif(not os.environ.get('ESMA_NB_SLOW'), reason='ESMA_NB_SLOW=1 runs the slow ones'))])
@pytest.mark.parametrize('end', [b'{"iteration": 4, "memb', b'\x00'*300, b'\xff\xfe', b'{'])
def test_a_run_goes_on_after_a_torn_line(whole, cut_off, book, end):
    with open(cut_off/book, 'ab') as f: f.write(end)
    _,said = run(cut_off)
    assert 'going on after iteration 3' in said and digest(cut_off)==digest(whole)
    assert (cut_off/'journal.jsonl').read_bytes()==(whole/'journal.jsonl').read_bytes() and iterations(cut_off/'metrics.jsonl')==[1, 2, 3, 4]

def test_a_damaged_line_in_the_middle_is_named_and_nothing_is_touched(cut_off):
    path = cut_off/'journal.jsonl'
    lines = path.read_bytes().split(b'\n')
    lines[1] = lines[1][:40]
    path.write_bytes(b'\n'.join(lines))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r'journal.jsonl line 2 is damaged') as e: run(cut_off)
    assert is_one_line(e) and path.read_bytes()==before

@pytest.mark.parametrize('order', [[0, 1, 1, 2], [0, 2], [0, 2, 1]], ids=['twice', 'missing', 'swapped'])
def test_a_journal_with_a_line_twice_or_missing_is_refused(cut_off, order):
    path = cut_off/'journal.jsonl'
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b''.join(lines[i] for i in order))
    with pytest.raises(ValueError, match='journal.jsonl') as e: run(cut_off)
    assert is_one_line(e)

def test_a_flipped_digit_in_a_journal_without_checkpoints(cut_off):
    "What the journal says is all there is: it has to notice by itself."
    shutil.rmtree(cut_off/'checkpoints')
    path = cut_off/'journal.jsonl'
    lines = path.read_bytes().split(b'\n')
    at = lines[2].index(b'"coefficients": [')+22
    assert chr(lines[2][at]).isdigit()
    lines[2] = lines[2][:at] + bytes([lines[2][at]^1]) + lines[2][at+1:]
    path.write_bytes(b'\n'.join(lines))
    with pytest.raises(ValueError, match='journal') as e: run(cut_off)
    assert is_one_line(e)

# ---- Clocks

JUMPY = '''
import os,runpy,sys,time
real,jump = time.time,float(sys.argv.pop(1))
def jumpy(): # Right until the first iteration is done
    return real() + (jump if os.path.exists(sys.argv[-1]+'/journal.jsonl') else 0)
time.time = jumpy
runpy.run_module('esma_nb.evolution.train', run_name='__main__', alter_sys=True)
'''

@pytest.mark.parametrize('jump', [-3e8, 3e8])
def test_a_clock_that_jumps(whole, tmp_path, jump):
    "Ten years back or forth in the middle of a run: neither the weights nor --max_hours care."
    out = tmp_path/'run'
    words = [w for k,v in TINY.items() for w in (f'--{k}', str(v))]
    done = subprocess.run([sys.executable, '-c', JUMPY, str(jump), *words, '--max_hours', '1', '--output_dir', out], capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert done.returncode==0 and 'hours are over' not in done.stdout, done.stdout+done.stderr
    assert digest(out)==digest(whole)
    assert all(v>=0 for l in (out/'metrics.jsonl').open() for k,v in json.loads(l).items() if k.endswith('seconds'))

@pytest.mark.parametrize('when', [0, 2_500_000_000])
def test_files_from_the_past_or_the_future(whole, cut_off, when):
    for i,p in enumerate(sorted(cut_off.rglob('*'), reverse=True)): os.utime(p, (when+i, when+i))
    _,said = run(cut_off)
    assert 'going on after iteration 3' in said and digest(cut_off)==digest(whole)

# ---- Drafts

def test_what_a_killed_process_with_our_number_left(whole, cut_off):
    "In a container every start has the same process number, and so the same names for its drafts."
    def left(name): return (cut_off/name).with_name(f'.{Path(name).name}.{os.getpid()}.draft')
    left('records/iter000004.jsonl').write_bytes((whole/'records'/'iter000004.jsonl').read_bytes()[:3000].rpartition(b'\n')[0]+b'\n')
    left('metrics.jsonl').write_bytes((whole/'metrics.jsonl').read_bytes().split(b'\n')[0]+b'\n')
    left('model').mkdir()
    (left('model')/'optimizer.safetensors').write_text('old')
    run(cut_off)
    assert digest(cut_off)==digest(whole) and not leftovers(cut_off)
    assert iterations(cut_off/'metrics.jsonl')==[1, 2, 3, 4]
    assert [json.loads(l)['question_id'] for l in (cut_off/'records'/'iter000004.jsonl').open()]==[json.loads(l)['question_id'] for l in (whole/'records'/'iter000004.jsonl').open()]
    assert {p.name for p in (cut_off/'model').iterdir()}=={p.name for p in (whole/'model').iterdir()}

# ---- Started twice

def test_the_same_command_while_it_is_running(tmp_path):
    "Somebody, or a scheduler, starts a run again that is still going on: the second start is refused, and the first one is not disturbed."
    first = Run(tmp_path/'run')
    first.wait_for_work()
    while first.p.poll() is None and not (tmp_path/'run'/'journal.jsonl').exists(): first.p.poll()
    second = Run(tmp_path/'run')
    if first.p.poll() is None:
        os.kill(first.p.pid, signal.SIGSTOP) # So that a slow machine does not let it finish first
        status = second.end()['rc']
        os.kill(first.p.pid, signal.SIGCONT)
        assert status==2 and 'another process' in second.text(), second.text()
    assert first.end()['rc']==0 and iterations(tmp_path/'run'/'journal.jsonl')==[1, 2, 3, 4], first.text()

def test_an_evaluation_that_is_started_twice(tmp_path):
    eval_model(num_samples=2, output_dir=str(tmp_path), device='cpu')
    with lock_run(tmp_path), pytest.raises(ValueError, match='another process'): eval_model(num_samples=2, output_dir=str(tmp_path), device='cpu')

# ---- A command that asks for something else than before

def test_fewer_iterations_than_are_done(cut_off):
    with pytest.raises(ValueError, match='3 iterations are done already'): run(cut_off, num_iterations=2)

def test_the_best_model_is_that_of_the_books_after_a_longer_command(tmp_path):
    "The end of a run is measured whatever the interval, so it may be the best when the run goes on."
    for n in (3, 5, 6): result,_ = run(tmp_path, num_iterations=n, evaluate_interval=2, metric_for_best_model='alignment', seed=0)
    best = tmp_path/'best'/'manifest.json'
    assert result['best']['iteration']==(json.loads(best.read_text())['iteration'] if best.exists() else 0)

# ---- A model that is not what it seems

def test_a_model_that_lacks_tensors(base, tmp_path):
    model,tokenizer,_ = base
    model.save_pretrained(tmp_path), tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path/'model.safetensors')
    save_file({n: w for n,w in weights.items() if 'layers.1' not in n}, tmp_path/'model.safetensors', metadata=dict(format='pt'))
    with pytest.raises(ValueError, match='lack 9 tensors') as e: load_model(str(tmp_path))
    assert is_one_line(e)

def test_what_bfloat16_members_leave_alone_is_not_rounded(base, tmp_path):
    "Gains take no part, and positions have frequencies in float32 whatever members compute in; so a replay finds the same bits."
    result,_ = run(tmp_path/'run', dtype='bfloat16')
    with redirect_stdout(io.StringIO()): assert replay_run(str(tmp_path/'run'), checkpoints=False)==result['model_sha256']
    frequencies = cast_parameters(deepcopy(base[0]), torch.bfloat16).model.rotary_emb.inv_freq
    assert frequencies.equal(base[0].model.rotary_emb.inv_freq)
    gains = {n: p for n,p in base[0].named_parameters() if p.ndim<2}
    tuned = load_file(tmp_path/'run'/'model'/'model.safetensors')
    assert gains and all(tuned[n].equal(p) for n,p in gains.items())
