"The default matcher on real questions: right about the row's own answers, silent about another row's. Needs ESMA_NB_DATA"
import json, os, random
from pathlib import Path
import pytest
from esma_nb.metrics.matching import substring_match, word_match

DATA = Path(os.environ.get('ESMA_NB_DATA', '/nowhere'))
SETS = {'trivia_qa/validation.jsonl': lambda r: r['answer']['aliases'], 'nq_open/validation.jsonl': lambda r: r['answer']}
PAIRS = 20_000

@pytest.fixture(params=SETS, ids=lambda n: n.split('/')[0])
def rows(request):
    if not (DATA/request.param).exists(): pytest.skip(f'no {request.param}: set ESMA_NB_DATA to a folder that has it')
    with open(DATA/request.param, encoding='utf-8') as f: return [(r['question'], SETS[request.param](r)) for r in map(json.loads, f)]

def test_every_alias_is_its_own_answer(rows):
    missed = [a for _,answers in rows for a in answers if a.strip() and not word_match(a, answers)]
    assert not missed, missed[:10]

@pytest.mark.parametrize('echo', [False, True], ids=['answer', 'question and answer'])
def test_another_rows_answer_is_wrong(rows, echo):
    "At most half as often right by chance as the published substring"
    rng, words, letters = random.Random(0), 0, 0
    for _ in range(PAIRS):
        (_,answers),(question,others) = rng.sample(rows, 2)
        reply = (f'{question} ' if echo else '') + rng.choice(others)
        words += word_match(reply, answers)
        letters += substring_match(reply, answers)
    assert words <= letters/2 and words/PAIRS < .002, (words, letters)

def test_other_spellings_are_found_more_often(rows):
    "An alias against the rest of its row, which is how a data set spells one answer differently"
    rng = random.Random(0)
    pairs = [(a, [b for b in answers if b!=a]) for _,answers in rows[:1500] if len(answers)>1 for a in rng.sample(answers, 1)]
    words,letters = (sum(match(a, rest) for a,rest in pairs) for match in (word_match, substring_match))
    assert words > 1.2*letters, (words, letters, len(pairs))

def test_labelled_pairs():
    "Every pair of the page's table is judged as its author judged it, but for those that are named as missed."
    from csv import DictReader
    from importlib.resources import files
    table = files('esma_nb').joinpath('data/matching/pairs.tsv').read_text(encoding='utf-8').splitlines()
    pairs = list(DictReader(table, delimiter='\t'))
    wrong = [(p['reply'], p['answers']) for p in pairs if word_match(p['reply'].replace('\\n', '\n'), p['answers'].split('|')) != (p['right'] == 'yes' and p['kind'] != 'missed')]
    assert not wrong and len(pairs) >= 400

def test_long_replies_are_judged_in_time():
    "No pattern takes quadratic time on a reply without spaces or marks. (It would take minutes.)"
    for text in ('不是' * 20_000, '가' * 40_000 + '아니', 'not ' * 20_000, 'A.' * 20_000 + 'a', 'two ' * 20_000, '"' * 40_000, 'and ' * 20_000, 'one hundred and ' * 5_000, 'is it wrong? no, ' * 5_000, '-5 km 1/2/3 ' * 5_000):
        assert not word_match(text + ' Lima', ['a week', 'J. K. Rowling', '利马', '리마'])
