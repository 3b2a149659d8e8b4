"What a run is made from changes between two starts: weights, questions, answers, the model it wrote. Nothing is mixed."
import io,json,shutil
from contextlib import redirect_stdout
from functools import partial
import pytest,torch
from huggingface_hub import constants
from esma_nb.core.files import read_json,write_json
from esma_nb.datasets.registry import load_rows
from esma_nb.engines.models import load_model
from esma_nb.core.manifests import sha256_file
from esma_nb.engines.saving import fingerprint,save_model
from esma_nb.evaluation.evaluate import eval_model
from esma_nb.evolution.train import train
from esma_nb.patching.deltas import open_delta
from esma_nb.patching.commands import delta
from esma_nb.patching.replay import at_iteration,replay_run
from esma_nb.sft.train import sft

ES = dict(sigma=.04, alpha=.02, population_size=4, num_data_per_iteration=8, num_val_samples=10, model_save_interval=1, device='cpu', dtype='float32', seed=5)
SFT = dict(num_epochs=1, num_val_samples=10, batch_size=4, device='cpu')

def quietly(f, *args, **kw):
    with redirect_stdout(io.StringIO()): return f(*args, **kw)

def save(folder, factor=1.): # The embedded model, with other gains, which evolution does not train
    model,tokenizer = load_model('demo', 'float32', 'cpu')
    with torch.no_grad(): [p.mul_(factor) for p in model.parameters() if p.ndim==1]
    shutil.rmtree(folder, ignore_errors=True)
    save_model(model, tokenizer, folder)

def questions(path, answer=None):
    rows = [r | dict(answers=[answer] if answer else r['answers']) for r in load_rows('demo')[0][:60]]
    path.write_text(''.join(json.dumps(r)+'\n' for r in rows))

def forget_hashes(run): # As a run of an older version
    about = read_json(run/'args.json')
    write_json(run/'args.json', {k: v for k,v in about.items() if not k.endswith('_sha256')})

@pytest.mark.parametrize('older', [False, True])
def test_another_base(tmp_path, older):
    save(tmp_path/'base')
    command = ES | dict(model=str(tmp_path/'base'), dataset='demo', output_dir=str(tmp_path/'run'))
    quietly(train, **command, num_iterations=2)
    if older: forget_hashes(tmp_path/'run')
    save(tmp_path/'base', 1.3)
    with pytest.raises(ValueError, match='other weights'): quietly(train, **command, num_iterations=3)
    with pytest.raises(ValueError, match='other weights'): quietly(replay_run, str(tmp_path/'run'), 1)
    save(tmp_path/'base')
    assert quietly(train, **command, num_iterations=3)['iterations']==3

def test_an_evaluation_of_another_model(tmp_path):
    save(tmp_path/'model')
    command = dict(model=str(tmp_path/'model'), num_samples=10, device='cpu', output_dir=str(tmp_path/'run'))
    first = quietly(eval_model, **command)
    save(tmp_path/'model', 1.3)
    with pytest.raises(ValueError, match='other weights'): quietly(eval_model, **command)
    save(tmp_path/'model')
    assert quietly(eval_model, **command)==first

def test_other_answers(tmp_path):
    data = tmp_path/'questions.jsonl'
    questions(data)
    evolve,tune = (dict(dataset=str(data), output_dir=str(tmp_path/name)) for name in ('evolution', 'sft'))
    quietly(train, **ES | evolve, num_iterations=2), quietly(sft, **SFT | tune)
    questions(data, 'something else')
    with pytest.raises(ValueError, match='other questions or answers'): quietly(train, **ES | evolve, num_iterations=3)
    with pytest.raises(ValueError, match='other questions or answers'): quietly(sft, **SFT | tune)

@pytest.mark.parametrize('command', [lambda out: train(**ES, num_iterations=2, output_dir=out), lambda out: sft(**SFT, num_samples=12, output_dir=out)])
def test_a_changed_model_is_refused_and_one_that_is_gone_made_again(tmp_path, command):
    first,weights = quietly(command, str(tmp_path/'run')),tmp_path/'run'/'model'/'model.safetensors'
    for spoil in (lambda: weights.write_bytes(weights.read_bytes()[:1000]), weights.unlink):
        spoil()
        with pytest.raises(ValueError, match='model.safetensors is .*delete or rename .*/run/model and'): quietly(command, str(tmp_path/'run'))
        assert not weights.exists() or weights.stat().st_size==1000
    shutil.rmtree(weights.parent)
    again = quietly(command, str(tmp_path/'run'))
    assert again['model_sha256']==first['model_sha256'] and weights.stat().st_size>10**6

def test_a_delta_has_no_path_of_the_machine(tmp_path):
    for name,factor in dict(base=1., tuned=1.3).items(): save(tmp_path/name, factor)
    quietly(delta, str(tmp_path/'base'), str(tmp_path/'tuned'), str(tmp_path/'d.safetensors'))
    about = open_delta(tmp_path/'d.safetensors').metadata
    assert (about['base'], about['tuned'])==('base', 'tuned') and str(tmp_path) not in str(about)

def test_a_moved_branch_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    repository,first,second = tmp_path/'cache'/'models--me--tiny','a'*40,'b'*40
    for commit,factor in {first: 1., second: 1.3}.items(): save(repository/'snapshots'/commit, factor)
    def move(to): (repository/'refs').mkdir(exist_ok=True), (repository/'refs'/'main').write_text(to)
    move(first)
    command = ES | dict(dataset='demo', output_dir=str(tmp_path/'run'))
    made = quietly(train, **command, model='me/tiny', num_iterations=2)
    move(second)
    with pytest.raises(ValueError, match=f'another revision.*give --model me/tiny@{first},'): quietly(train, **command, model='me/tiny', num_iterations=3)
    with pytest.raises(ValueError, match='belongs to a run with'): quietly(train, **command, model=f'me/tiny@{second}', num_iterations=3)
    model,*_ = at_iteration(tmp_path/'run', 0, checkpoints=False)
    assert fingerprint(dict(model.named_parameters()))==fingerprint(dict(load_model(f'me/tiny@{first}', 'float32', 'cpu')[0].named_parameters()))
    quietly(replay_run, str(tmp_path/'run'), output_dir=str(tmp_path/'again'))
    assert sha256_file(tmp_path/'again'/'model.safetensors')==sha256_file(tmp_path/'run'/'model'/'model.safetensors')
    assert quietly(train, **command, model=f'me/tiny@{first}', num_iterations=3)['iterations']==3 and made['iterations']==2
    quietly(delta, f'me/tiny@{first}', f'me/tiny@{second}', str(tmp_path/'d.safetensors'))
    assert f'--model me/tiny@{first}' in (tmp_path/'run'/'model'/'README.md').read_text()

def untimed(found): return {k: v for k,v in found.items() if k!='seconds'}

def test_a_device_of_another_dtype(tmp_path, monkeypatch):
    def runs_in(**able): monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: able, raising=False)
    command = dict(ES, dtype='auto', output_dir=str(tmp_path/'run'))
    runs_in()
    quietly(train, **command, num_iterations=1)
    runs_in(avx512_bf16=True)
    with pytest.raises(ValueError, match='another dtype.*give --dtype float32,'): quietly(train, **command, num_iterations=2)
    resumed = quietly(train, **command | dict(dtype='float32'), num_iterations=2)
    assert resumed['model_sha256']==quietly(train, **ES, num_iterations=2, output_dir=str(tmp_path/'float32'))['model_sha256']
    for name,again in dict(eval=partial(eval_model, num_samples=10, device='cpu'), sft=partial(sft, **SFT | dict(num_samples=12))).items():
        again = partial(quietly, again, output_dir=str(tmp_path/name))
        first = again()
        about = read_json(tmp_path/name/'args.json')
        assert about['compute_dtype']=='float32'
        write_json(tmp_path/name/'args.json', about | dict(compute_dtype='bfloat16'))
        if name=='sft': (tmp_path/name/'summary.json').unlink()
        with pytest.raises(ValueError, match='another dtype.*give --dtype bfloat16,'): again()
        write_json(tmp_path/name/'args.json', about)
        assert untimed(again(dtype='float32'))==untimed(first)
