"A tutorial needs the package and a notebook, no more, and says where else it can be opened; test_notebooks.py runs them"
import ast,json,re,sys
import pytest
from nbdev.config import get_config

cfg = get_config()
PAGES = sorted((cfg.nbs_path/'tutorials').glob('*.ipynb'))
GIVEN = {re.split(r'[><=\[]', r)[0] for r in cfg.requirements.split()} | {cfg.lib_name, 'IPython'} | sys.stdlib_module_names

def sources(page, kind): return [''.join(c['source']) for c in json.loads(page.read_text(encoding='utf-8'))['cells'] if c['cell_type']==kind]

def imported(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): yield from (a.name.split('.')[0] for a in node.names)
        if isinstance(node, ast.ImportFrom): yield node.module.split('.')[0]

@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_needs_only_the_package(page):
    python = [s for s in sources(page, 'code') if '%pip' not in s and not s.startswith('%%')]
    assert {name for s in python for name in imported(s)} <= GIVEN

@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_opens_elsewhere(page):
    words = '\n'.join(sources(page, 'markdown'))
    assert f'(https://colab.research.google.com/github/{cfg.user}/{cfg.repo}/blob/{cfg.branch}/nbs/tutorials/{page.name})' in words
    assert f'%pip install -q git+{cfg.git_url}' in '\n'.join(sources(page, 'code'))
    assert '## Try it yourself' in words and '## Where to read on' in words
