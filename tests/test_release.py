"What is published: one version everywhere, workflows that may do little, and a wheel that works alone"
import configparser,os,re,subprocess,sys,tarfile,venv,zipfile
from pathlib import Path
import pytest, yaml

ROOT = Path(__file__).resolve().parent.parent
slow = pytest.mark.skipif(not os.environ.get('ESMA_NB_SLOW'), reason='ESMA_NB_SLOW=1 runs the slow ones')
WORKFLOWS = sorted((ROOT/'.github'/'workflows').glob('*.yml'))

@pytest.fixture(scope='module')
def settings():
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']

def cited(): return yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8'))

def test_one_version(settings):
    assert f'__version__ = "{settings["version"]}"' in (ROOT/'esma_nb'/'__init__.py').read_text(encoding='utf-8')
    assert f"## {settings['version']}" in (ROOT/'CHANGELOG.md').read_text(encoding='utf-8')
    assert cited()['version']==settings['version'] and cited()['repository-code']==settings['git_url'].replace('%(user)s', settings['user'])

def test_citation_has_what_github_asks_for():
    assert {'cff-version', 'message', 'title', 'authors'} <= cited().keys()
    paper, = cited()['references']
    assert [a['family-names'] for a in paper['authors']] == ['Park', 'Meyerson', 'Qiu', 'Miikkulainen']

def test_every_command_is_a_function(settings):
    for line in settings['console_scripts'].split():
        module,function = re.fullmatch(r'esma_nb_\w+=esma_nb\.([\w.]+):(\w+)', line).groups()
        assert re.search(rf'^def {function}\(', (ROOT/'esma_nb'/f"{module.replace('.', '/')}.py").read_text(encoding='utf-8'), re.M), line

def test_constraints_fit_the_requirements(settings):
    from packaging.requirements import Requirement
    pinned = dict(l.split('==') for l in (ROOT/'constraints.txt').read_text().lower().splitlines() if '==' in l)
    for line in f"{settings['requirements']} {settings['dev_requirements']} {settings['api_requirements']} {settings['gguf_requirements']}".split():
        r = Requirement(line)
        assert r.specifier.contains(pinned[r.name.lower()]), line

@pytest.mark.parametrize('path', WORKFLOWS, ids=lambda p: p.stem)
def test_workflow(path):
    flow = yaml.safe_load(path.read_text(encoding='utf-8'))
    assert flow['permissions']=={'contents': 'read'} and {True} <= flow.keys() # YAML reads the key "on" as true
    for name,job in flow['jobs'].items():
        assert job['runs-on'] and set(job.get('permissions', {}))<={'pages', 'id-token'}, name
        for step in job['steps']:
            assert ('uses' in step) != ('run' in step), step
            assert 'run' in step or re.search(r'@(v\d+|[0-9a-f]{40})$', step['uses']), f"{step['uses']} is not pinned"
            command = step.get('run', '').split()
            assert all((ROOT/w).exists() for w in command if w.startswith(('.ci/', 'tools/'))), step

def sh(*command, **kw):
    r = subprocess.run([str(c) for c in command], capture_output=True, text=True, **kw)
    assert r.returncode==0, f'{command}\n{r.stdout}\n{r.stderr}'
    return r.stdout

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "A wheel made from the sdist, which was made from what git knows and what is new."
    out,src = tmp_path_factory.mktemp('built'),tmp_path_factory.mktemp('src')
    for name in sh('git', 'ls-files', '-co', '--exclude-standard', cwd=ROOT).splitlines():
        if name.startswith(('esma_nb/', 'tests/')) or '/' not in name:
            (src/name).parent.mkdir(parents=True, exist_ok=True)
            (src/name).write_bytes((ROOT/name).read_bytes())
    sh(sys.executable, '-m', 'pip', 'install', '-q', '--target', out/'tools', 'build')
    sh(sys.executable, '-m', 'build', '--outdir', out, src, env=os.environ|{'PYTHONPATH': str(out/'tools')})
    return next(out.glob('*.whl')),next(out.glob('*.tar.gz'))

@slow
def test_nothing_strays_into_what_is_published(built):
    wheel,sdist = built
    names = zipfile.ZipFile(wheel).namelist()
    assert not [n for n in names if not re.match(r'esma_nb/((\w+/)?\w+\.py|data/.+)$|esma_nb-[\d.]+\.dist-info/', n) or 'pycache' in n]
    assert {'esma_nb/data/report.html.j2', 'esma_nb/data/demo/model/model.safetensors'} <= set(names)
    top = {n.split('/')[1] for n in tarfile.open(sdist).getnames() if '/' in n}
    assert not top & {'tests', 'nbs', 'runs', 'out'} and {'settings.ini', 'LICENSE', 'CITATION.cff', 'constraints.txt'} <= top
    assert wheel.stat().st_size < 4_000_000

@slow
def test_the_wheel_alone_trains_and_reports(built, tmp_path):
    "A fresh environment, an empty folder, no checkout, no network for the model: it trains the demo and writes its report."
    home,empty = tmp_path/'env',tmp_path/'empty'
    empty.mkdir()
    venv.create(home, with_pip=True)
    env = {k: v for k,v in os.environ.items() if k not in ('PYTHONPATH', 'VIRTUAL_ENV')} | {'HF_HUB_OFFLINE': '1'}
    sh(home/'bin'/'pip', 'install', '-q', '-c', ROOT/'constraints.txt', built[0], env=env)
    sh(home/'bin'/'pip', 'check')
    where = sh(home/'bin'/'python', '-c', 'import esma_nb; print(esma_nb.__file__)', cwd=empty, env=env)
    assert where.startswith(str(home))
    said = sh(home/'bin'/'esma_nb_train', cwd=empty, env=env)
    assert 'model_sha256' in said
    sh(home/'bin'/'esma_nb_report', 'out/demo-seed42', cwd=empty, env=env)
    assert (empty/'out'/'demo-seed42'/'report.html').stat().st_size > 50_000
