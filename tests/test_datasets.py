"Layouts in which question sets are published, and real files behind the loaders (those need the folder named by ESMA_NB_DATA)."
import json, os, subprocess, sys
from pathlib import Path
import pytest
from esma_nb.metrics.matching import word_match
from esma_nb.datasets.question_sets import mkqa_langs
from esma_nb.datasets.registry import load_rows, load_train_val
from esma_nb.datasets.rows import normalize_question

data = os.environ.get('ESMA_NB_DATA')
real = pytest.mark.skipif(not data, reason='ESMA_NB_DATA names no folder with real question sets')

def lines(name):
    with Path(data, name).open(encoding='utf-8') as f: return [json.loads(l) for l in f]

# Small files in the layout of published sets, written for this test: name, content, and the answers or the error that comes of it
lake, ada = 'Which lake is the deepest?', 'Who wrote the first computer program'
def rows_of(*rows): return '\n'.join(json.dumps(r) for r in rows)
layouts = {
    'plain JSON Lines': ('q.jsonl', rows_of(dict(question=lake, answers=['Lake Baikal', 'Baikal'])), [['Lake Baikal', 'Baikal']]),
    'MMLU on the hub': ('q.jsonl', rows_of(dict(question=lake, subject='lakes', choices=['Erie', 'Baikal', '1', '0'], answer=1)), [['Baikal']]),
    'MMLU as a table': ('q.csv', f'question,choices,answer\n{lake},"[\'Erie\', \'Baikal\']",1', [['Baikal']]),
    'MMLU as a table of NumPy': ('q.csv', f'question,choices,answer\n{lake},"[\'Erie\' \'Baikal\']",1', 'row 1: answers .* in Python, with commas'),
    'MMLU, two readings': ('q.csv', f'question,choices,answer\nHow many?,"[\'0\', \'2\', \'4\']",2', "the answer '2' may mean 2 or 4 of the choices"),
    'MMLU, index too large': ('q.jsonl', rows_of(dict(question=lake, choices=['Erie', 'Baikal'], answer=2)), 'the answer 2 is none of the choices A Erie, B Baikal: write the text of the right one$'),
    'MMLU-Pro': ('q.jsonl', rows_of(dict(question=lake, options=['Erie', 'Baikal'], answer='B', answer_index=1)), [['Baikal']]),
    'MMMLU': ('q.csv', f'Question,A,B,C,D,Answer\n{lake},Erie,Baikal,Aral,Chad,B', [['Baikal']]),
    'MedQA': ('q.jsonl', rows_of(dict(question=lake, options=dict(A='Erie', B='Baikal'), answer='Baikal', answer_idx='B')), [['Baikal']]),
    'ARC': ('q.jsonl', rows_of(dict(id='1', question=lake, choices=dict(text=['Erie', 'Baikal'], label=['A', 'B']), answerKey='B')), [['Baikal']]),
    'ARC with digits': ('q.jsonl', rows_of(dict(question=lake, choices=dict(text=['Erie', 'Baikal'], label=['1', '2']), answerKey='2')), [['Baikal']]),
    'CommonsenseQA': ('q.jsonl', rows_of(dict(question=lake, question_concept='lake', choices=dict(label=['A', 'B'], text=['Erie', 'Baikal']), answerKey='B')), [['Baikal']]),
    'CommonsenseQA, original': ('q.jsonl', rows_of(dict(question=dict(stem=lake), answerKey='B')), 'row 1: a question is a text, and not'),
    'numbered options': ('q.csv', f'question,option1,option2,answer\n{lake},Erie,Baikal,2', [['Baikal']]),
    'a letter of no choice': ('q.csv', f'question,A,B,answer\n{lake},Erie,Baikal,C', "the answer 'C' is none of the choices"),
    'several right choices': ('q.jsonl', rows_of(dict(question=lake, choices=['Erie', 'Baikal', 'Lake Baikal'], answers=['B', 'C'])), [['Baikal', 'Lake Baikal']]),
    'GSM8K': ('q.jsonl', rows_of(dict(question='How many legs do 3 dogs have?', answer='A dog has 4 legs | so 3*4 = <<3*4=12>>12\n#### 12')), [['12']]),
    'CuratedTREC': ('q.csv', 'who invented basketball\t["James\\\\s+Naismith"]', r"row 1: the answer 'James\\\\s\+Naismith' is a regular expression: write out"),
    'CuratedTREC, alternatives': ('q.tsv', 'question\tanswer\nwhen?\t(July|Jul) 4', r"the answer '\(July\|Jul\) 4' is a regular expression"),
    'SimpleQA': ('q.csv', f'metadata,problem,answer\n"{{\'topic\': \'x\'}}",{lake},Baikal', [['Baikal']]),
    'PopQA': ('q.tsv', f'id\tsubj\tobj\tquestion\tpossible_answers\n1\tlake\tBaikal\t{lake}\t["Baikal", "Lake Baikal"]', [['Baikal', 'Lake Baikal']]),
    'TruthfulQA': ('q.csv', f'Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\nX,Y,{lake},Baikal,Baikal; Lake Baikal,Erie; Chad,-', [['Baikal', 'Lake Baikal']]),
    'TruthfulQA on the hub': ('q.jsonl', rows_of(dict(question=lake, best_answer='Baikal', correct_answers=['Baikal', 'Lake Baikal'], incorrect_answers=['Erie'])), [['Baikal', 'Lake Baikal']]),
    'SelfAware': ('q.json', json.dumps(dict(dataset_name='SelfAware', keywords=['x'], metrics=['F1'], example=[dict(question_id=1, question=lake, answer=['baikal'], answerable=True),
        dict(question_id=2, question='Why?', answer=None, answerable=False)])), [['baikal']]),
    'DPR, no header': ('q.qa.csv', f"{ada}\t['Ada Lovelace', \"Byron's daughter\"]\nwho, then\t['Grace']", [['Ada Lovelace', "Byron's daughter"], ['Grace']]),
    'no header, one question mark': ('q.tsv', f'{lake}\tBaikal', [['Baikal']]),
    'no header, text': ('q.txt', f'{lake}\tBaikal\n{ada}\tAda', [['Baikal'], ['Ada']]),
    'JSON Lines called text': ('q.txt', rows_of(dict(question=lake, answer='Baikal'), dict(question=ada, answer='Ada')), [['Baikal'], ['Ada']]),
    'JSON called text': ('q.txt', json.dumps([dict(question=lake, answer='Baikal')], indent=1), [['Baikal']]),
    'text of questions': ('q.txt', lake, "a text should hold JSON or columns with tabs between them, and it begins 'Which lake"),
    'lone quotes': ('q.tsv', f'question\tanswer\n"Hey Jude" is by whom\tThe Beatles\n"who\tAda\nwhen"\t1843', [['The Beatles'], ['Ada'], ['1843']]),
    'quotes around a line end': ('q.tsv', 'question\tanswer\n"Who,\nthen?"\tAda', [['Ada']]),
    'semicolons': ('q.csv', f'question;answer\n{lake};Baikal', [['Baikal']]),
    'Python list of one': ('q.csv', f'question,answer\n{lake},"[\'Baikal\']"', [['Baikal']]),
    'Python call': ('q.csv', f'question,answer\n{lake},"[print(1)]"', 'should be a list in JSON'),
    'other names': ('q.csv', f'frage,antwort\n{lake},Baikal', 'row 1: there is no question: the columns are frage, antwort; rename the right one to question$'),
    'no answers': ('q.csv', f'question,solution\n{lake},Baikal', 'row 1: there are no answers: the columns are question, solution; rename the right one to answers$'),
    'two lists': ('q.json', json.dumps(dict(train=[dict(question=lake)], test=[dict(question=ada)])), 'should hold one list of rows, and has 2'),
    'another format': ('q.xlsx', 'x', "cannot read '.*q.xlsx': pick one of trivia_qa, .* that ends in .jsonl .json .csv .tsv .txt .parquet"),
}

@pytest.mark.parametrize('name, content, want', layouts.values(), ids=layouts)
def test_layout(name, content, want, tmp_path):
    path = tmp_path/name
    path.write_text(content + '\n', encoding='utf-8')
    if isinstance(want, list): assert [r['answers'] for r in load_rows(str(path))[0]] == want
    else:
        with pytest.raises(ValueError, match=want) as e: load_rows(str(path))
        assert '\n' not in str(e.value) and name in str(e.value)

@pytest.mark.parametrize('dataset', ['nq_open', 'web_questions'])
@pytest.mark.parametrize('field', ['answer', 'answers'])
@pytest.mark.parametrize('value', [['Baikal', 'Bajkal'], "['Baikal', 'Bajkal']"], ids=['list', 'text'])
def test_answer_or_answers(dataset, field, value, tmp_path):
    (tmp_path/'train.jsonl').write_text(rows_of({'question': lake, field: value}), encoding='utf-8')
    assert load_rows(dataset, 'train', data_dir=tmp_path)[0][0]['answers'] == ['Baikal', 'Bajkal']

def test_paper_takes_the_first(tmp_path):
    for split in ('train', 'validation'): (tmp_path/f'{split}.jsonl').write_text(rows_of(*[dict(question=f'{split} {i}?', answer=[str(i)]) for i in range(50)]), encoding='utf-8')
    def asked(rows): return [r['question'] for r in rows]
    first = [f'validation {i}?' for i in range(5)]
    assert asked(load_rows('nq_open', data_dir=tmp_path, num_samples=5, seed=1, clean=False)[0]) == first
    assert asked(load_train_val('nq_open', data_dir=tmp_path, num_val_samples=5, clean=False)[1]) == first
    assert asked(load_rows('nq_open', data_dir=tmp_path, num_samples=5, seed=1)[0]) != first

@pytest.mark.parametrize('preset', ['default', 'paper'])
def test_training_takes_the_first_too(preset, monkeypatch, tmp_path):
    from esma_nb.evolution import setup
    from esma_nb.evolution.train import train
    from esma_nb.datasets.rows import sample_rows
    taken = []
    def spy(rows, *args, **how):
        taken.append((rows, sample_rows(rows, *args, **how)))
        return taken[-1][1]
    monkeypatch.setattr(setup, 'sample_rows', spy)
    train(model='demo', preset=preset, num_samples=64, num_data_per_iteration=16, num_val_samples=20, device='cpu', output_dir=str(tmp_path/'run'), dry_run=True)
    rows,some = taken[0]
    assert len(some)==64 and (some==rows[:64])==(preset=='paper')

def test_columns_by_name(tmp_path):
    (tmp_path/'q.csv').write_text('frage,antwort\n' + ''.join(f'Wer {i}?,{i}\n' for i in range(12)), encoding='utf-8')
    names = dict(question_column='frage', answers_column='antwort')
    assert load_rows(str(tmp_path/'q.csv'), **names)[0][3]['answers'] == ['3']
    assert [len(part) for part in load_train_val(str(tmp_path/'q.csv'), num_val_samples=4, **names)[:2]] == [8, 4]
    with pytest.raises(ValueError, match="no question in a column 'ask': the columns are frage, antwort"): load_rows(str(tmp_path/'q.csv'), question_column='ask')

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
    rows, val, counts = load_train_val(dataset, data_dir=Path(data, file), num_val_samples=200)
    assert (len(rows), len(val), counts['overlap']) == (train, held, overlap)
    assert not {normalize_question(r['question']) for r in rows} & {normalize_question(r['question']) for r in val}

@real
def test_same_rows_from_parquet(tmp_path):
    import pandas as pd
    pd.DataFrame(lines('trivia_qa/validation.jsonl')[:100]).to_parquet(tmp_path/'validation-00000-of-00001.parquet')
    assert load_rows('trivia_qa', data_dir=tmp_path)[0] == load_rows('trivia_qa', data_dir=data)[0][:100]

def test_import_is_light():
    code = "import sys, esma_nb.datasets.registry; print([m for m in ('datasets', 'huggingface_hub', 'pyarrow', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'

@pytest.mark.parametrize('dataset', ['nq_open', 'mkqa'])
def test_hub_out_of_reach(dataset, tmp_path):
    code = f"from esma_nb.datasets.registry import load_rows\ntry: load_rows({dataset!r})\nexcept ConnectionError as e: print(e)"
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

PUBLISHED = dict( # A row in the layout of each set, and its answers
    popqa=('test.tsv', 'id\tquestion\tpossible_answers\n7\tWhich lake is deepest?\t["Baikal", "Lake Baikal"]\n', ['Baikal', 'Lake Baikal']),
    entity_questions=('P17.dev.json', json.dumps([dict(question='Which lake?', answers=['Baikal'])]), ['Baikal']),
    simpleqa=('simple_qa_test_set.csv', 'metadata,problem,answer\n{},Which lake?,Baikal\n', ['Baikal']),
    truthful_qa=('validation.jsonl', json.dumps(dict(question='Which lake?', mc1_targets=dict(choices=['Baikal', 'Ohio'], labels=[1, 0]))) + '\n', 'Baikal'),
    mmlu=('test.jsonl', json.dumps(dict(question='Which lake?', subject='x', choices=['Ohio', 'Baikal'], answer=1)) + '\n', ['B', 'Baikal']),
    mmlu_pro=('test.jsonl', json.dumps(dict(question_id=1, question='Which lake?', options=['Ohio', 'Baikal'], answer='B', answer_index=1)) + '\n', ['B', 'Baikal']),
    arc_easy=('test.jsonl', json.dumps(dict(id='a', question='Which lake?', choices=dict(text=['Ohio', 'Baikal'], label=['A', 'B']), answerKey='B')) + '\n', ['B', 'Baikal']),
    commonsense_qa=('validation.jsonl', json.dumps(dict(id='a', question='Which lake?', choices=dict(text=['Ohio', 'Baikal'], label=['A', 'B']), answerKey='A')) + '\n', ['A', 'Ohio']),
    gsm8k=('test.jsonl', json.dumps(dict(question='6 * 7?', answer='It is 42.\n#### 42')) + '\n', ['42']))

@pytest.mark.parametrize('name', PUBLISHED)
def test_published_layouts(name, tmp_path):
    file,text,answers = PUBLISHED[name]
    (tmp_path/file).write_text(text)
    rows,_ = load_rows(name, data_dir=tmp_path)
    assert len(rows)==1 and (rows[0]['answers']==answers or rows[0]['answers'][1]==answers), rows

def test_selfaware(tmp_path):
    asked = [dict(question_id=1, question='Which lake?', answer=['Baikal'], answerable=True, source='x'), dict(question_id=2, question='Why is there anything?', answer=None, answerable=False, source='x')]
    (tmp_path/'SelfAware.json').write_text(json.dumps(dict(example=asked)))
    rows,_ = load_rows('selfaware', data_dir=tmp_path)
    assert rows[0]['answers']==['Baikal']
    for reply,right in [('Nobody knows.', 1), ('It cannot be known', 1), ("I don't know", 1), ('The answer is unknown.', 1), ('Because of God', 0), ('It is known to be luck', 0)]:
        assert word_match(reply, rows[1]['answers'])==bool(right), reply

OWN = {'popqa.tsv': 'id\tquestion\tpossible_answers\n7\tWhich lake?\t["Baikal", "Bajkal"]\n', 'simpleqa.csv': 'problem,answer\nWhich lake?,Baikal|Bajkal\n',
    'dpr.csv': "which lake is the deepest of all\t['Baikal', 'Bajkal']\n", 'efficientqa.jsonl': '{"question": "which lake", "answer": ["Baikal", "Bajkal"]}\n'}

@pytest.mark.parametrize('name', OWN)
def test_own_files_in_published_layouts(name, tmp_path):
    (tmp_path/name).write_text(OWN[name])
    assert load_rows(str(tmp_path/name))[0][0]['answers']==['Baikal', 'Bajkal']

def test_own_columns(tmp_path):
    path = tmp_path/'mine.csv'
    path.write_text('frage,antwort\nWelcher See?,Baikal\n')
    with pytest.raises(ValueError, match='the columns are frage, antwort'): load_rows(str(path))
    assert load_rows(str(path), question_column='frage', answers_column='antwort')[0][0]['answers']==['Baikal']
