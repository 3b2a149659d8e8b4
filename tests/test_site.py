"The documentation site: built as strictly as for readers, then every page in a real browser"
import json,os,re,subprocess,sys
from functools import partial
from http.server import SimpleHTTPRequestHandler,ThreadingHTTPServer
from pathlib import Path
from threading import Thread
import pytest
from browser import CHROMIUM,Browser

ROOT = Path(__file__).parent.parent
smalldocs = pytest.importorskip('smalldocs')

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_): pass

@pytest.fixture(scope='module')
def site():
    done = subprocess.run([sys.executable, 'tools/docs.py'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode==0, done.stderr
    return ROOT/'_docs'

@pytest.fixture(scope='module')
def address(site):
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=site))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown(), server.server_close()

@pytest.fixture
def browser(tmp_path):
    if not CHROMIUM: pytest.skip('no chromium on this machine')
    opened = []
    def browser(**how):
        opened.append(Browser(tmp_path, **how))
        return opened[-1]
    yield browser
    for b in opened: b.close()

# What reaches over the edge, unless it scrolls in a box of its own
WIDE = """[...document.querySelectorAll('body *')].filter(e => {
    const out = e => e.getBoundingClientRect().right > innerWidth+1
    if (!out(e) || !e.checkVisibility() || e.closest('#quarto-sidebar')) return false
    for (let p = e.parentElement; p; p = p.parentElement) if (getComputedStyle(p).overflowX=='auto' && !out(p)) return false
    return true }).map(e => e.outerHTML.slice(0, 90))"""
MUTE = """[...document.images].filter(i => i.alt.trim().split(/\\s+/).length<3 || !i.naturalWidth).map(i => i.outerHTML.slice(0, 90))"""
# Is the page dark? A theme that was not loaded yet gets 20 seconds to come
DARK = """new Promise(done => {
    let n = 0
    const dark = () => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, c) => a + +c, 0) < 300
    const look = () => dark()==matchMedia('(prefers-color-scheme: dark)').matches || n++ > 400 ? done(dark()) : setTimeout(look, 50)
    look() })"""

def complaints(b, address, page, dark):
    "All that is wrong with a page at two widths and in both themes; it is loaded in one of them."
    b.look(390, dark)
    b.open(address+page)
    for width,theme in ((390, dark), (1280, dark), (1280, not dark), (390, not dark)):
        b.look(width, theme)
        if b.js(DARK)!=theme: yield f"{page} is not {'dark' if theme else 'light'}"
        for what,js in dict(wide=WIDE, mute=MUTE).items():
            if found := b.js(js): yield f'{page} at {width}: {what} {found}'
        if b.js('document.documentElement.scrollWidth > innerWidth'): yield f'{page} scrolls sideways at {width}'
    for r in b.seen('Network.requestWillBeSent'):
        if not r['request']['url'].startswith((address, 'data:')): yield f"{page} asks for {r['request']['url']}"
    for e in b.seen('Runtime.consoleAPICalled', 'Runtime.exceptionThrown', 'Log.entryAdded'): yield f'{page} says {str(e)[:300]}'

def test_every_page(site, address, browser):
    b = browser()
    pages = [str(p.relative_to(site)) for p in sorted(site.rglob('*.html'))]
    assert len(pages) > 50
    assert [c for i,page in enumerate(pages) for c in complaints(b, address, page, bool(i%2))]==[]

def test_search(address, browser):
    b = browser().open(address)
    b.js("const q = document.querySelector('#quarto-search input'); q.focus(); q.value = 'type2_dprime'; q.dispatchEvent(new Event('input', {bubbles: true}))")
    found = "[...document.querySelectorAll('.smalldocs-search-results a')].map(a => a.getAttribute('href'))"
    links = b.js(f"new Promise(done => {{ const again = () => {{ const l = {found}; l.length ? done(l) : setTimeout(again, 50) }}; again() }})")
    assert any('detection.html' in l for l in links), links

def test_without_javascript(address, browser):
    b = browser(script=False).open(address+'metrics/signal_detection.html')
    root = b.call('DOM.getDocument', depth=0)['root']['nodeId']
    for wanted in ('main h2', 'main pre code', 'a.sidebar-link[href$="prompts/templates.html"]'):
        node = b.call('DOM.querySelector', nodeId=root, selector=wanted)['nodeId']
        assert node and b.call('DOM.getBoxModel', nodeId=node)['model']['height'] > 5, wanted   # It can be seen

def test_every_command_is_on_the_page():
    "As it is: the page's stored output is what the command prints today."
    said = {}
    for c in json.loads((ROOT/'nbs/command_line.ipynb').read_text(encoding='utf-8'))['cells']:
        typed = re.search(r'^(esma_nb_\w+) --help$', ''.join(c['source']), re.M)
        if typed: said[typed[1]] = ''.join(t for o in c['outputs'] for t in o['text'])
    scripts = dict(l.strip().split('=') for l in re.search(r'console_scripts = ((?:.*\n?)(?:[ \t]+.*\n)*)', (ROOT/'settings.ini').read_text())[1].splitlines())
    assert set(said)==set(scripts)
    code = """import json,sys; from importlib import import_module; from esma_nb.core.cli import make_parser
def help(name, target): module,f = target.split(':'); return make_parser(getattr(import_module(module), f).__wrapped__, name).format_help()
print(json.dumps({name: help(name, target) for name,target in json.loads(sys.argv[1]).items()}))"""
    now = subprocess.run([sys.executable, '-c', code, json.dumps(scripts)], capture_output=True, text=True, env=os.environ | dict(COLUMNS='80'))
    for name,text in json.loads(now.stdout).items(): assert text.rstrip()==said[name].rstrip(), f'{name}: execute nbs/command_line.ipynb again'

def test_what_the_builder_refuses(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT/'tools')
    from docs import problems
    (tmp_path/'a.html').write_text('<h1 id="top"><a href="#top"></a><a href="b.html#no"></a><a href="c.html"></a><img src="https://x.org/x.png" alt="A red square">'
        '<img src="data:image/png,"><a href="https://git/tools/docs.py#L3"></a><a href="https://git/none.py"></a>')
    (tmp_path/'b.html').write_text('<p>')
    (tmp_path/'x.css').write_text('@import url(https://fonts.example.org/x); a {background: url("data:image/svg+xml,http://www.w3.org")}')
    bad = [p for p in problems(tmp_path, ROOT, 'https://git/') if 'is not documented' not in p]
    assert [p.split(':')[0] for p in bad]==['a.html']*5+['x.css'], bad
    for i,says in enumerate(('1 images', 'another host', 'anchor b.html#no', 'link c.html', 'none.py', 'another host')): assert says in bad[i]
