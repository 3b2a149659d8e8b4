"The field's words: names of the first build that a reader from this field could not guess define nothing any more"
import ast,re
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
# As any identifier
PRIVATE = set('''Team Master Share Campaign Course Reply LeanReader Crew crew hands twin abreast visit visit_all visit_abreast visit_together
    in_parts stretch open_books books earned choose talking room ways made deal tell twins reader_of reads_lean local_ask ask_each ask_crew
    noise_memory best_by wording or_home own_store token_memory whole_tensor surgery Anchored MetaScores.of by_meta by_logits by_idk naive_way our_way
    question_sets QuestionSet nats teach_answers forget_later'''.split())
# As the name of a function, class or argument; elsewhere they are ordinary words
FUNCTIONS = set('ask wait part hand write_home home step population places share go advance between together held_out outcome reader through look far seen live limits differs where exchange clip'.split())
# Arguments that are the field's own words there
FINE = {('integrations/trackers.py', 'step'), ('engines/decoding.py', 'step'), ('api/concurrency.py', 'wait'), ('engines/hf.py', 'part'),
    ('prompts/claim_parsing.py', 'part'), ('evolution/train.py', 'held_out'), ('integrations/trackers.py', 'held_out'), ('datasets/registry.py', 'where')}

def names(tree):
    for n in ast.walk(tree):
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): yield n.name,True
        elif isinstance(n, ast.arg): yield n.arg,True
        elif isinstance(n, ast.Name): yield n.id,False
        elif isinstance(n, ast.Attribute): yield n.attr,False

@pytest.mark.parametrize('path', sorted((ROOT/'esma_nb').rglob('*/*.py')), ids=lambda p: f'{p.parent.name}/{p.name}')
def test_code(path):
    short = f'{path.parent.name}/{path.name}'
    found = {n for n,is_new in names(ast.parse(path.read_text(encoding='utf-8'))) if n in PRIVATE or is_new and n in FUNCTIONS and (short, n) not in FINE}
    assert not found, f"{short} has {', '.join(sorted(found))}: design/HOUSE.md names the field's words"

def texts():
    import json
    for p in [ROOT/'README.md', ROOT/'CONTRIBUTING.md', ROOT/'settings.ini', *sorted((ROOT/'nbs').rglob('*.ipynb'))]:
        if '_proc' in p.parts or '.ipynb_checkpoints' in p.parts: continue
        if p.suffix!='.ipynb': yield p,p.read_text(encoding='utf-8')
        else:
            for c in json.loads(p.read_text(encoding='utf-8'))['cells']:
                if c['cell_type']=='markdown': yield p,''.join(c['source'])

def test_docs():
    "In prose, a name is what stands in backticks, or an option."
    found = [f'{p.name}: {name}' for p,text in texts() for tick in re.findall(r'(?<!`)`([^`\n]+)`(?!`)|(--[a-z_]+)', text)
        for name in re.findall(r'[A-Za-z_]\w*', ' '.join(tick)) if name in PRIVATE|{'esma_nb_where', 'patience', 'clip'}]
    assert not found, found
