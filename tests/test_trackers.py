"Each tracker that is installed writes a run, goes on after a stop, and is opened by its own reader"
import json,os,subprocess,sys
from importlib.util import find_spec
from pathlib import Path
import pytest
from esma_nb.core.runs import open_run

write = """
import sys
from pathlib import Path
from esma_nb.metrics.scores import MetaScores
from esma_nb.core.files import append_lines,read_json
from esma_nb.integrations.trackers import tracker
name,out,steps,break_at = sys.argv[1],Path(sys.argv[2]),[int(t) for t in sys.argv[3].split(',')],int(sys.argv[4])
s = MetaScores.from_claims([True]*50+[False]*50, [True]*40+[False]*10+[True]*40+[False]*10)
t = tracker(name, out, dict(read_json(out/'args.json')['args'], api_key='sk-123-never'), held_out={0: s})
for i in steps:
    m = dict(iteration=i, reward_mean=i/10, d_prime_type2=None)
    append_lines(out/'metrics.jsonl', [m])
    if i==break_at:
        def gone(*args, **kw): raise ConnectionResetError('gone')
        t.inner.log = gone
    t.log(m, i)
t.log_scores(s, i)
print(t.hint)
t.finish()
"""
secrets = b'sk-123-never',b'hunter2',b'private_folder_of_ann'

def open_tensorboard(out, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    return [(e.step, e.value) for e in EventAccumulator(str(out/'tensorboard')).Reload().Scalars(tag)]

def open_wandb(out, tag): # `wandb leet inspect` reads the files; what was written offline has one for every start
    found = []
    for p in sorted(out.glob('wandb/offline-run-*')):
        said = subprocess.run([sys.executable, '-m', 'wandb', 'leet', 'inspect', '--json', str(p)], capture_output=True, text=True, check=True).stdout
        found += [row for row in map(json.loads, said.splitlines()) if row['type']=='history']
    items = [row['history']['item'] for row in found]
    return [(v['_step'], v[tag]) for v in items if tag in v]

def open_trackio(out, tag):
    env = dict(os.environ, TRACKIO_DIR=str(out/'trackio'))
    def ask(*words):
        r = subprocess.run([sys.executable, '-m', 'trackio.cli', *words, '--project', 'esma_nb', '--json'], env=env, capture_output=True, text=True, check=True)
        return json.loads(r.stdout)
    run, = ask('list', 'runs')['runs']
    return [(v['step'], v['value']) for v in ask('get', 'metric', '--run', run if isinstance(run, str) else run['name'], '--metric', tag)['values']]

def open_mlflow(out, tag):
    from mlflow import MlflowClient
    c = MlflowClient(f"sqlite:///{out/'mlflow'/'mlflow.db'}")
    run, = c.search_runs([e.experiment_id for e in c.search_experiments()])
    assert run.info.status=='FINISHED' and run.data.params['sigma']=='0.001'
    return [(m.step, m.value) for m in c.get_metric_history(run.info.run_id, tag)]

readers = dict(tensorboard=open_tensorboard, wandb=open_wandb, trackio=open_trackio, mlflow=open_mlflow)

def start(name, out, steps, cwd, break_at=0):
    home = cwd.parent/'home'
    env = {k: v for k,v in os.environ.items() if not k.startswith(('WANDB', 'MLFLOW', 'TRACKIO'))} | dict(HOME=str(home), PYTHONPATH=str(Path(__file__).parent.parent))
    r = subprocess.run([sys.executable, '-c', write, name, str(out), steps, str(break_at)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert r.returncode==0, r.stderr
    return r.stdout

@pytest.mark.parametrize('name', readers)
def test_a_run_that_its_own_reader_opens(name, tmp_path):
    for package in [name] + ['sqlalchemy', 'alembic']*(name=='mlflow'):
        if not find_spec(package): pytest.skip(f'{package} is not installed')
    cwd,out = tmp_path/'private_folder_of_ann'/'cwd',tmp_path/'atlas-seed7'
    cwd.mkdir(parents=True)
    open_run(out, dict(model='/home/private_folder_of_ann/atlas-1b', data_dir='https://ann:hunter2@example.org/qa', sigma=.001, split=None, seed=7))
    hint = start(name, out, '1,2', cwd)
    assert 'has failed' not in hint and str(out) in hint
    said = start(name, out, '3,4', cwd, break_at=3)
    assert f'{name} has failed' in said
    start(name, out, '5,6', cwd)
    steps,rewards = zip(*readers[name](out, 'train/reward_mean'))
    assert steps==(1, 2, 3, 4, 5, 6) and rewards==pytest.approx([t/10 for t in steps])
    assert [step for step,_ in readers[name](out, 'held_out/accuracy')]==[0, 2, 6]
    assert len(readers[name](out, 'held_out/accuracy_low'))==3
    assert not list(cwd.iterdir()), 'something was written where the user stands'
    # Two things name the folder somebody stood in: wandb's debug logs, which are not sent, and MLflow's unused default experiment
    files = [p for p in (out/name).rglob('*') if p.is_file() and not p.name.startswith('debug')]
    hidden = secrets[:2] if name=='mlflow' else secrets
    assert files and not [(p, s) for p in files for s in hidden if s in p.read_bytes()]

def test_a_gradient_run_is_mirrored_too(tmp_path):
    "Every line of its metrics, and what was measured; a second start, which finds nothing to do, shows nothing twice."
    from esma_nb.core.files import read_json,read_lines
    from esma_nb.sft.train import sft_meta
    if not find_spec('tensorboard'): pytest.skip('tensorboard is not installed')
    out = tmp_path/'run'
    for _ in range(2): sft_meta(num_samples=24, num_val_samples=20, num_epochs=1, batch_size=2, device='cpu', evaluate_interval=6, log_with='tensorboard', output_dir=str(out))
    lines = read_lines(out/'metrics.jsonl')
    steps,losses = zip(*open_tensorboard(out, 'train/loss'))
    assert list(steps)==[m['iteration'] for m in lines] and losses==pytest.approx([m['loss'] for m in lines])
    assert [t for t,_ in open_tensorboard(out, 'held_out/accuracy')]==[0, 6, 12]
    assert open_tensorboard(out, 'held_out/auroc')[-1][1]==pytest.approx(read_json(out/'summary.json')['after']['auroc'])

def test_a_gradient_run_refuses_an_unknown_tracker(tmp_path):
    from esma_nb.sft.train import sft
    with pytest.raises(ValueError, match='choose tensorboard'): sft(log_with='comet', output_dir=str(tmp_path/'run'))
    assert not (tmp_path/'run').exists()
