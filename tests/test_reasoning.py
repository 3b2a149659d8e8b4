"Reasoning models: a miniature that really writes blocks of reasoning, asked under every claim and preset"
import json
from contextlib import redirect_stdout
from io import StringIO
import pytest,torch
from servers import KEY,Server
from esma_nb.api.client import APIEngine
from esma_nb.evaluation.records import load_records,record
from esma_nb.evaluation.protocol import resolve_protocol,build_claim
from esma_nb.evaluation.evaluate import eval_model
from esma_nb.sft.examples import tokenize_example
from esma_nb.engines.hf import hf_engine
from esma_nb.engines.models import load_model
from esma_nb.engines.saving import save_model
from esma_nb.evaluation.protocol import matchers
from esma_nb.prompts.templates import direct_prompt,meta_prompt

COUNTRIES = 'France Japan Brazil Nauru Tuvalu Palau Peru Kenya Chad Oman Mali Fiji'.split()
def is_right(i): return i<6
def question(i): return f'What is the capital of {COUNTRIES[i]}?' if is_right(i) else f'Which city rules {COUNTRIES[i]}?' # What the miniature can tell apart
ROWS = [dict(question_id=c, question=question(i), answers=[f'{c} City']) for i,c in enumerate(COUNTRIES)]
NEVER = [dict(question_id=c, question=f'How many people live in {c}?', answers=['9']) for c in ('Togo', 'Laos')] # Reasons without an end

BLOCKS = [lambda why, says: f'<think>{why}</think>{says}', lambda why, says: f'<think>\n{why}\n</think>\n\n{says}',
    lambda why, says: f'<think></think>{says}', lambda why, says: f'<|channel|>analysis<|message|>{why}<|end|><|start|>assistant<|channel|>final<|message|>{says}',
    lambda why, says: f'[THINK]{why}[/THINK]{says}', lambda why, says: f'<think>{why}</think><think>{why}</think>{says}']

def reply_to(i, kind): # The reasoning names the right answer, both claims and a pass
    city = f'{COUNTRIES[i]} City'
    if kind=='meta': return BLOCKS[0]('Yes? No?', 'Yes' if is_right(i) else 'No')
    return BLOCKS[i%len(BLOCKS) if kind=='direct' else 0](f'{city}? I don\'t know', city if is_right(i) else 'Rome')

def lessons(made): # `(Prompt, reply)` for the prompts that these choices put
    for name in ('meta', 'idk'):
        claim = build_claim(made, name)
        for i,row in enumerate(ROWS):
            yield claim.direct(row['question']),reply_to(i, 'direct' if name=='meta' else name)
            if claim.extra: yield claim.extra(row['question']),reply_to(i, 'meta')
        for row in NEVER:
            yield claim.direct(row['question']),'<think>' + 'Rome? '*14
            if claim.extra: yield claim.extra(row['question']),'<think>' + 'Yes? no? '*8

def loss_of(model, ids, labels): # The last tokens, which are the answer, weigh more than the block before them
    said = labels[:, 1:]>=0
    loss = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[:, :-1][said], labels[:, 1:][said], reduction='none')
    weights = 1. + 2*(said & (said.flip(1).cumsum(1).flip(1)<=3))[said]
    return (loss*weights).sum()/weights.sum()

def taught(model, tokenizer, pairs, steps=90): # Overfitted until it says each reply word by word
    torch.manual_seed(0)
    model.train().requires_grad_(True)
    examples = [tokenize_example(tokenizer, p, r) for p,r in dict(pairs).items()]
    examples.sort(key=lambda e: len(e[0]))
    def stacked(some): # Token ids, and labels with -100 where a token does not count
        width = max(len(ids) for ids,_ in some)
        return (torch.tensor([ids+[0]*(width-len(ids)) for ids,_ in some]),
            torch.tensor([[-100]*start+ids[start:]+[-100]*(width-len(ids)) for ids,start in some]))
    halves = stacked(examples[:len(examples)//2]),stacked(examples[len(examples)//2:])
    opt = torch.optim.AdamW(model.parameters(), lr=8e-3, betas=(.9, .98), weight_decay=0.)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 8e-3, total_steps=steps, pct_start=.15)
    for _ in range(steps):
        opt.zero_grad()
        losses = [loss_of(model, *half) for half in halves]
        sum(losses).backward()
        opt.step(), schedule.step()
    return model.eval().requires_grad_(False),max(l.item() for l in losses)

@pytest.fixture(scope='module')
def thinker(tmp_path_factory):
    "A folder with a model that reasons before it answers, and a file with its questions."
    out = tmp_path_factory.mktemp('thinker')
    model,tokenizer = load_model('demo', 'float32', 'cpu')
    model,loss = taught(model, tokenizer, [pair for preset in ('default', 'paper') for pair in lessons(resolve_protocol(preset))])
    assert loss<.05, loss
    save_model(model, tokenizer, out/'model')
    for name,rows in dict(mine=ROWS, never=NEVER).items(): (out/f'{name}.jsonl').write_text(''.join(json.dumps(r)+'\n' for r in rows))
    return out

def measured(thinker, file, **how):
    out = thinker/f"run-{file}-{'-'.join(map(str, how.values()))}"
    said = StringIO()
    with redirect_stdout(said): scores = eval_model(model=str(thinker/'model'), dataset=str(thinker/f'{file}.jsonl'), device='cpu', output_dir=str(out), **how)
    return scores,load_records(next((out/'records').glob('*.jsonl'))),said.getvalue()

@pytest.mark.parametrize('preset', ['default', 'paper'])
@pytest.mark.parametrize('claim', ['meta', 'logits', 'idk'])
def test_only_the_answer_counts(thinker, claim, preset):
    "Half of its answers are right, and its reasoning names the right answer in all of them."
    scores,records,said = measured(thinker, 'mine', claim=claim, preset=preset, max_reasoning_tokens=200)
    assert (scores['n'], scores['accuracy'], scores['failed'])==(12, .5, 0)
    assert [r.correct for r in records]==[is_right(i) for i in range(12)]
    assert 'I don' in records[0].direct_reasoning and records[0].direct_output=='France City'
    if claim!='idk': assert [r.yes for r in records]==[is_right(i) for i in range(12)], said
    if claim=='idk': assert all(r.yes for r in records) # None of its answers is a pass, whatever its reasoning says
    assert said.count('reasons although --enable_thinking is off')==1

def test_log_odds_are_those_of_the_answer(thinker):
    _,records,_ = measured(thinker, 'mine', claim='logits', max_reasoning_tokens=200)
    assert all((r.log_odds>3)==is_right(i) and abs(r.log_odds)>3 for i,r in enumerate(records)), [r.log_odds for r in records]

@pytest.mark.parametrize('claim', ['meta', 'logits', 'idk'])
def test_reasoning_without_an_end_has_failed(thinker, claim):
    "Neither wrong nor No: null, with what to do."
    scores,records,said = measured(thinker, 'never', claim=claim, max_reasoning_tokens=8)
    assert (scores['n'], scores['failed'])==(0, 2)
    for r in records:
        assert (r.correct, r.yes, r.unparsed, r.log_odds)==(None, None, False, None)
        assert r.failed=='no answer within 40 tokens: raise --max_reasoning_tokens' and 'Rome' in r.direct_reasoning
    assert 'no answer within 40 tokens: raise --max_reasoning_tokens' in said

def test_without_room_nothing_is_scored(thinker):
    _,records,said = measured(thinker, 'mine', claim='meta')
    assert all(r.failed is None or r.failed.endswith('raise --max_reasoning_tokens') for r in records)
    assert all(r.correct==is_right(i) and r.yes==is_right(i) for i,r in enumerate(records) if not r.failed) and any(r.failed for r in records)

def test_a_template_that_opens_the_block(thinker):
    "As DeepSeek-R1's: the reply has a closing tag only, and without one it is all reasoning."
    model,tokenizer = load_model(str(thinker/'model'), 'float32', 'cpu')
    tokenizer.chat_template = tokenizer.chat_template.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")
    direct = [r for r in hf_engine(model, tokenizer, max_reasoning_tokens=100)([direct_prompt(ROWS[i]['question']) for i in (0, 6)])]
    assert [r.text for r in direct]==['France City', 'Rome'] and all(r.reasoning for r in direct)
    late, = hf_engine(model, tokenizer, max_reasoning_tokens=8)([direct_prompt(NEVER[0]['question'], max_new_tokens=4)])
    assert late.failed and late.text==''

def test_the_switch_of_the_template(thinker):
    "As Qwen3's: off by default, with an empty block in the prompt."
    model,tokenizer = load_model(str(thinker/'model'), 'float32', 'cpu')
    tokenizer.chat_template += '{% if add_generation_prompt and not enable_thinking %}<think></think>{% endif %}'
    prompts = [meta_prompt(r['question']) for r in (ROWS[0], ROWS[6])]
    heard = []
    off = hf_engine(model, tokenizer, warn=heard.append)(prompts)
    on = hf_engine(model, tokenizer, enable_thinking=True, max_reasoning_tokens=100, warn=heard.append)(prompts)
    assert [r.reasoning for r in on]==['Yes? No?', 'Yes? No?'] and [r.text for r in on]==['Yes', 'No']
    assert all(r.reasoning is None for r in off) or heard

# The same through an API: what the server sends besides the answer is reasoning that says the opposite

def sent(content, end='stop', **fields): # How the server answers
    def send(handler, asked):
        text = 'Yes' if 'Do you know' in str(asked) else 'City 1'
        message = dict(role='assistant', content=content(text)) | {k: f(text) for k,f in fields.items()}
        handler.say(200, json.dumps(dict(model='thinker', choices=[dict(index=0, message=message, finish_reason=end)], usage=dict(prompt_tokens=50, completion_tokens=30))))
    return send

WHY = 'City 1? Yes? No? I don\'t know.'
WHOLE = {f'block {i}': sent(lambda text, b=b: b(WHY, text)) for i,b in enumerate(BLOCKS)} | dict(
    closing_tag_only=sent(lambda text: f'{WHY}</think>\n\n{text}'), reasoning_content=sent(lambda text: text, reasoning_content=lambda text: WHY),
    reasoning=sent(lambda text: text, reasoning=lambda text: WHY), parts=sent(lambda text: [dict(type='thinking', thinking=WHY), dict(type='text', text=text)]),
    channels_without_tokens=sent(lambda text: f'analysis{WHY}assistantfinal{text}'))
UNFINISHED = dict(block=sent(lambda text: f'<think>{WHY}', 'length'), block_that_stopped=sent(lambda text: f'<think>{WHY}'), reasoning_only=sent(lambda text: None, 'length', reasoning_content=lambda text: WHY),
    channel=sent(lambda text: f'<|channel|>analysis<|message|>{WHY}', 'length'))
API_ROW = dict(question_id='1', question='What is the capital of Country 1?', answers=['City 1'])

def through_api(send, name, preset, **how):
    server,made = Server(lambda server, body, n: send),resolve_protocol(preset, meta_chat=True)
    try:
        claim = build_claim(made, name)
        remote = APIEngine('thinker', server.url, KEY, timeout=5, tries=1, **how)
        replies = remote([f(API_ROW['question']) for f in (claim.direct, claim.extra) if f])
    finally: server.close()
    return record(API_ROW, claim, matchers[made['matcher']], *replies)

@pytest.mark.parametrize('preset', ['default', 'paper'])
@pytest.mark.parametrize('kind', WHOLE)
def test_an_api_that_reasons(kind, preset):
    r = through_api(WHOLE[kind], 'meta', preset)
    assert (r.direct_output, r.correct, r.meta_output, r.yes, r.failed)==('City 1', True, 'Yes', True, None)
    if kind!='block 2': assert 'I don' in r.direct_reasoning
    assert through_api(WHOLE[kind], 'idk', preset).yes is True

@pytest.mark.parametrize('preset', ['default', 'paper'])
@pytest.mark.parametrize('kind', UNFINISHED)
def test_an_api_that_never_gets_to_its_answer(kind, preset):
    r = through_api(UNFINISHED[kind], 'meta', preset)
    assert (r.correct, r.yes, r.unparsed)==(None, None, False) and r.failed, r
