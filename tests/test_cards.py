"A model is sent to a hub of our own by the hub's own client, with a card that it understands"
import base64,json,threading
from http.server import BaseHTTPRequestHandler,ThreadingHTTPServer
from pathlib import Path
import pytest
from huggingface_hub import HfApi,ModelCard
from esma_nb.integrations.hub import model_card,upload,write_model_card
from esma_nb.core.cli import normalize_options,make_parser
from esma_nb.core.files import read_json
from esma_nb.core.manifests import verify_manifest

class Hub(BaseHTTPRequestHandler):
    "As much of the hub as an upload of small files needs; what it was sent is in `server.got`."
    def do_POST(self):
        body,got = self.rfile.read(int(self.headers['Content-Length'])),self.server.got
        if self.headers['Authorization']!='Bearer hf_test': return self.answer(401, dict(error='Invalid username or password.'))
        if self.path=='/api/repos/create':
            got['repo'] = json.loads(body)
            return self.answer(200, dict(url=f"{self.server.home}/ann/knows", name='ann/knows'))
        if self.path=='/api/validate-yaml': return self.answer(200, dict(errors=[], warnings=[]))
        if self.path.endswith('/preupload/main'):
            return self.answer(200, dict(files=[dict(path=f['path'], uploadMode='regular', shouldIgnore=False) for f in json.loads(body)['files']]))
        assert self.path.endswith('/commit/main'), self.path
        for line in map(json.loads, body.splitlines()):
            if line['key']=='file': got['files'][line['value']['path']] = base64.b64decode(line['value']['content'])
        self.answer(200, dict(commitUrl=f'{self.server.home}/ann/knows/commit/1', commitOid='1'))

    def do_GET(self): self.answer(401, dict(error='Invalid username or password.'))

    def answer(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_): pass

@pytest.fixture
def hub(monkeypatch):
    "A hub on this machine; whether the real one may be reached, and through which proxy, is no matter to it."
    from huggingface_hub.utils import close_session
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    for name in ('NO_PROXY', 'no_proxy'): monkeypatch.setenv(name, '127.0.0.1')
    close_session() # The client is made again, and reads the proxies anew
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.home,server.got = f'http://127.0.0.1:{server.server_port}',dict(files={})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
    close_session()

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    from esma_nb.evolution.train import train
    out = tmp_path_factory.mktemp('private')/'tiny'
    train(sigma=.04, population_size=4, num_data_per_iteration=16, num_val_samples=40, device='cpu', seed=3, num_iterations=1, output_dir=str(out))
    write_model_card(out, train)
    return out

def test_every_file_arrives(run, hub):
    upload(run/'model', 'knows', api=HfApi(endpoint=hub.home, token='hf_test'))
    assert hub.got['repo']['name']=='knows' and hub.got['repo'].get('private', hub.got['repo'].get('visibility')=='private')
    assert hub.got['files']=={p.name: p.read_bytes() for p in (run/'model').iterdir()}
    verify_manifest(run/'model')

def test_a_wrong_token_is_one_line_without_it(run, hub):
    with pytest.raises(ConnectionError, match='hf upload') as e: upload(run/'model', 'knows', api=HfApi(endpoint=hub.home, token='hf_wrong'))
    assert 'hf_wrong' not in str(e.value) and '\n' not in str(e.value)

def test_nobody_logged_in(run, monkeypatch, tmp_path):
    from esma_nb.integrations.hub import check_upload
    monkeypatch.setattr('huggingface_hub.get_token', lambda: None)
    with pytest.raises(ValueError, match='hf auth login'): check_upload('ann/knows')

def test_told_to_stay_offline(monkeypatch):
    from esma_nb.integrations.hub import check_upload
    monkeypatch.setattr('huggingface_hub.get_token', lambda: 'hf_test')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    check_upload('ann/knows')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(ValueError, match='while HF_HUB_OFFLINE is set'): check_upload('ann/knows')

def test_the_card_of_a_real_run(run):
    import shlex
    from esma_nb.evolution.train import train
    text = model_card(run, train)
    about = ModelCard(text)
    assert about.data.tags==['esma_nb', 'metacognition', 'evolution-strategies'] and about.data.base_model is None
    line = next(l for l in text.splitlines() if l.startswith('esma_nb_train '))
    parser,args = make_parser(train),read_json(run/'args.json')['args']
    again = vars(parser.parse_args(normalize_options(parser, shlex.split(line)[1:])))
    assert {k: again.get(k) for k in args}==args and args.keys()-again.keys()=={'reward', 'prompts'} # Functions are no options
    assert read_json(run/'summary.json')['model_sha256'] in text and 'private' not in text

@pytest.mark.parametrize('task,more,says', [('sft', {}, 'on the answers to questions'), ('sft_meta', {}, 'with gradients (SFT) to say truthfully'),
    ('sft_meta', dict(answers=True), 'together with the answers')])
def test_the_card_of_a_gradient_run(tmp_path, task, more, says):
    import shlex
    import esma_nb.sft.train
    out,command = tmp_path/'private',getattr(esma_nb.sft.train, task)
    command(num_samples=4, num_val_samples=20, num_epochs=1, batch_size=2, device='cpu', output_dir=str(out), **more)
    text = (out/'model'/'README.md').read_text(encoding='utf-8')
    about = ModelCard(text)
    assert about.data.tags==['esma_nb', 'metacognition', 'sft'] and says in text and 'evolution' not in text
    assert f'after 2 iterations of `esma_nb_{task}`' in text and 'private' not in text
    line = next(l for l in text.splitlines() if l.startswith(f'esma_nb_{task} '))
    parser,args = make_parser(command),read_json(out/'args.json')['args']
    again = vars(parser.parse_args(normalize_options(parser, shlex.split(line)[1:])))
    assert {k: args[k] for k in again if k in args}=={k: v for k,v in again.items() if k in args}
    verify_manifest(out/'model')

def test_hostile_names_stay_text(run, tmp_path):
    import shutil
    from esma_nb.evolution.train import train
    shutil.copytree(run, tmp_path/'x', dirs_exist_ok=True)
    told = read_json(run/'args.json')
    told['args'] |= dict(model="a'`b`\n---\nlicense: mit\n```<script>alert(1)</script>", dataset='q|x.csv: [')
    (tmp_path/'x'/'args.json').write_text(json.dumps(told))
    about = ModelCard(model_card(tmp_path/'x', train))
    assert about.data.license is None and about.data.base_model is None
    outside = [block for i,block in enumerate(about.text.split('````')) if i%2==0] # Its command stands in a longer fence
    assert not any(l.startswith(('---', '```<', 'license')) for l in '\n'.join(outside).splitlines())

def test_a_failed_upload_does_not_hide_the_results(run, monkeypatch):
    "The scores are printed before the upload is tried."
    from types import SimpleNamespace
    from esma_nb.evolution import setup
    from esma_nb.evolution.train import train
    def out_of_reach(*_): raise ConnectionError('the hub is down')
    monkeypatch.setattr(setup, 'publish', out_of_reach)
    said = []
    with pytest.raises(ConnectionError): setup.finish_run(None, run, SimpleNamespace(is_main=True, close=lambda shut_down: None), said.append, train, 'ann/knows')
    assert 'model_sha256' in said[0]
