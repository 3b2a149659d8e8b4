"Replies that are no answers: a server on the loopback that misbehaves in every named way, and what each of them comes to in a record"
import asyncio,gzip,json,re,time
from math import inf,nan
import pytest
from servers import KEY,Server
from esma_nb.api.client import APIEngine
from esma_nb.api.concurrency import gather_or_cancel
from esma_nb.prompts.elicitation import logits_claim,meta_claim
from esma_nb.evaluation.records import failures,load_records,record,scores
from esma_nb.evaluation.protocol import resolve_protocol,build_claim
from esma_nb.evaluation.protocol import matchers
from esma_nb.prompts.templates import Completion,direct_prompt,meta_prompt
from esma_nb.evaluation.api_jobs import evaluate_api,run_and_bill
from esma_nb.evaluation.plans import Plan

ROW = dict(question_id='1', question='What is the capital of Country 1?', answers=['City 1'])
PROMPTS = [direct_prompt(ROW['question']), meta_prompt(ROW['question'])]
CLAIMS = dict(default=(meta_claim(), matchers['words']), logits=(logits_claim(), matchers['words']),
    paper=(build_claim(resolve_protocol('paper', meta_chat=True)), matchers['substring']))

# How a server answers. `text` is what a well-behaved one would say: `City 1`, or `Yes` to the meta question.

def chat(content, end='stop', usage=dict(prompt_tokens=50, completion_tokens=3), top=(), **more): # A completion
    choice = dict(index=0, message=dict(role='assistant', content=content) | more, finish_reason=end)
    return dict(id='x', object='chat.completion', model='bad-1', choices=[choice | dict(top)], usage=usage)

def body(make, status=200, **headers): # Sends what `make` makes of the text, as JSON unless it is text already
    def send(handler, text):
        made = make(text)
        handler.say(status, made if isinstance(made, str) else json.dumps(made), **headers)
    return send

def wire(make): # Sends bytes, and closes the connection
    return lambda handler, text: handler.hang_up(make(text))

def plain(content, kind='application/json', extra=''): # A whole HTTP reply
    data = content if isinstance(content, bytes) else content.encode()
    return f'HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n{extra}\r\n'.encode() + data

def events(*chunks, end='data: [DONE]\n\n', before=''): return before + ''.join(f'data: {json.dumps(c)}\n\n' for c in chunks) + end

def delta(end=None, **said): return dict(model='bad-1', choices=[dict(index=0, delta=said, finish_reason=end)])

def error(status, words, **headers): return body(lambda text: dict(error=dict(message=words)), status, **headers)

def slow(handler, text): time.sleep(1), handler.say(200, json.dumps(chat(text)))

def once(send): return lambda n: send if n==0 else body(chat) # Only at the first attempt

def silent(handler, text): # Announces more, and leaves it open
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"choices": [')
    handler.wfile.flush()
    time.sleep(1)

def loops(handler, text): handler.say(307, '', Location=f'http://127.0.0.1:{handler.server.server_port}/v1/chat/completions')
def moved(handler, text): handler.say(200, json.dumps(chat(text))) if '?here' in handler.path else handler.say(307, '', Location='/v1/chat/completions?here')

thought = 'Not sure: no. City 7 or City 1? Yes.'
read,empty,room = ('read',),('failed', r'empty reply \(finish_reason stop\)$'),('failed', 'no answer within [0-9]+ tokens: raise --max_reasoning_tokens')
broken = ('failed', 'broken reply')

TABLE = {
    # Contents that are no answer
    'null content, stop': (body(lambda t: chat(None)), empty),
    'empty content, stop': (body(lambda t: chat('')), empty),
    'no content at all, stop': (body(lambda t: dict(choices=[dict(message=dict(role='assistant'), finish_reason='stop')])), empty),
    'white space, stop': (body(lambda t: chat(' \n\t\u00a0 ')), empty),
    'invisible characters, stop': (body(lambda t: chat('\u200b\ufeff\u2060')), empty),
    'only an end token, stop': (body(lambda t: chat('<|im_end|>')), empty),
    'empty content, null finish': (body(lambda t: chat('', None)), ('failed', r'empty reply \(finish_reason null\)')),
    'empty content, unknown finish': (body(lambda t: chat('', 'eos')), ('failed', r'empty reply \(finish_reason eos\)')),
    'empty content, length': (body(lambda t: chat('', 'length')), room),
    'empty content, max_tokens': (body(lambda t: chat(None, 'MAX_TOKENS')), room),
    'empty content, tool_calls': (body(lambda t: chat(None, 'tool_calls', tool_calls=[dict(id='1', type='function')])), ('failed', 'finish_reason tool_calls')),
    'empty content, function_call': (body(lambda t: chat('', 'function_call', function_call=dict(name='f'))), ('failed', 'finish_reason function_call')),
    'preamble and a tool call': (body(lambda t: chat('Yes, let me look up City 1.', 'tool_calls', tool_calls=[dict(id='1')])), ('failed', 'call of a tool')),
    'content, tool_calls without a call': (body(lambda t: chat(t, 'tool_calls', tool_calls=[])), read),
    'content filter, no content': (body(lambda t: chat(None, 'content_filter')), ('failed', 'refused: content filter')),
    'content filter, half an answer': (body(lambda t: chat(t[:1], 'content_filter')), ('failed', 'refused: content filter')),
    'safety': (body(lambda t: chat('', 'SAFETY')), ('failed', 'refused: content filter')),
    'a refusal': (body(lambda t: chat(None, refusal='I cannot say yes.')), ('failed', 'refused: I cannot say yes')),
    'a refusal among the parts': (body(lambda t: chat([dict(type='refusal', refusal='No, sorry.')])), ('failed', 'refused: No, sorry')),
    'finish_reason error, half an answer': (body(lambda t: chat('City', 'error')), broken),
    'finish_reason error, no content': (body(lambda t: chat('', 'error')), broken),
    'an error in the choice': (body(lambda t: chat('', top=dict(error=dict(code=502, message='upstream')))), broken),
    'a message of the user': (body(lambda t: chat('Yes, City 1', role='user')), ('failed', 'message of role user')),
    'a message of the system': (body(lambda t: chat('Yes, City 1', role='system')), ('failed', 'message of role system')),
    'content is a number': (body(lambda t: chat(42)), empty),
    'content is true': (body(lambda t: chat(True)), empty),
    'content is an unknown dict': (body(lambda t: chat(dict(answer=dict(no='text')))), empty),
    'content is an empty list': (body(lambda t: chat([])), empty),
    'only an image': (body(lambda t: chat([dict(type='image_url', image_url=dict(url='City 1'))])), empty),
    # Contents that are
    'null finish_reason': (body(lambda t: chat(t, None)), read),
    'cut at its length': (body(lambda t: chat(t, 'length')), read),
    'parts': (body(lambda t: chat([dict(type='text', text=t[:2]), dict(type='text', text=t[2:])])), read),
    'parts without a type': (body(lambda t: chat([t[:2], dict(text=t[2:])])), read),
    'parts, some unknown': (body(lambda t: chat([dict(type='image_url', text='City 7. No.'), 7, None, dict(type='output_text', text=t)])), read),
    'content is one part': (body(lambda t: chat(dict(type='text', text=t))), read),
    'a part with annotations': (body(lambda t: chat([dict(type='text', text=dict(value=t, annotations=[]))])), read),
    'the message is a string': (body(lambda t: dict(choices=[dict(message=t, finish_reason='stop')])), read),
    'text of an old completion': (body(lambda t: dict(choices=[dict(text=t, finish_reason='stop', index=0)])), read),
    'role model': (body(lambda t: chat(t, role='model')), read),
    'no role': (body(lambda t: chat(t, role=None)), read),
    'an end token after the answer': (body(lambda t: chat(f'{t}<|im_end|>')), ('read', '<|im_end|>')),
    'several choices': (body(lambda t: chat(t) | dict(choices=chat(t)['choices'] + [dict(chat('City 7. No.')['choices'][0], index=1)])), read),
    'choices in another order': (body(lambda t: chat(t) | dict(choices=[dict(chat('City 7. No.')['choices'][0], index=1)] + chat(t)['choices'])), read),
    # Reasoning
    'a block': (body(lambda t: chat(f'<think>{thought}</think>\n\n{t}')), ('thought',)),
    'a block without a beginning': (body(lambda t: chat(f'{thought}</think>\n\n{t}')), ('thought',)),
    'an empty block': (body(lambda t: chat(f'<think>\n\n</think>\n\n{t}')), read),
    'a block without an end, length': (body(lambda t: chat(f'<think>{thought}', 'length')), room),
    'a block without an end, stop': (body(lambda t: chat(f'<think>{thought}')), room),
    'a block and nothing after it': (body(lambda t: chat(f'<think>{thought}</think>\n')), empty),
    'a block and nothing after it, length': (body(lambda t: chat(f'<think>{thought}</think>', 'length')), room),
    'channels': (body(lambda t: chat(f'<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant<|channel|>final<|message|>{t}')), ('thought',)),
    'reasoning_content': (body(lambda t: chat(t, reasoning_content=thought)), ('thought',)),
    'reasoning': (body(lambda t: chat(t, reasoning=thought)), ('thought',)),
    'reasoning_details': (body(lambda t: chat(t, reasoning_details=[dict(type='reasoning.text', text=thought), dict(type='reasoning.encrypted', data='eA==')])), ('thought',)),
    'a thinking part': (body(lambda t: chat([dict(type='thinking', thinking=[dict(type='text', text=thought)]), dict(type='text', text=t)])), ('thought',)),
    'reasoning only, length': (body(lambda t: chat(None, 'length', reasoning_content=thought)), room),
    'reasoning only, stop': (body(lambda t: chat(None, reasoning=thought)), ('failed', 'empty reply .*, reasoning only')),
    'a thinking part only': (body(lambda t: chat([dict(type='thinking', thinking=thought)], 'length')), room),
    # Usage
    'usage null': (body(lambda t: chat(t, usage=None)), read),
    'usage in strings': (body(lambda t: chat(t, usage=dict(prompt_tokens='50', completion_tokens='3'))), ('read', '', [50, 3])),
    'usage in floats': (body(lambda t: chat(t, usage=dict(prompt_tokens=50., completion_tokens=2.5))), ('read', '', [50, 3])),
    'usage negative': (body(lambda t: chat(t, usage=dict(prompt_tokens=-50, completion_tokens=-3))), read),
    'usage NaN': (body(lambda t: chat(t, usage=dict(prompt_tokens=nan, completion_tokens=inf))), read),
    'usage nested': (body(lambda t: chat(t, usage=dict(prompt_tokens=dict(n=50), completion_tokens=[3]))), read),
    'usage a list': (body(lambda t: chat(t, usage=[50, 3])), read),
    'usage a string': (body(lambda t: chat(t, usage='50 tokens')), read),
    'reasoning in the total only': (body(lambda t: chat(t, usage=dict(prompt_tokens=50, completion_tokens=3, total_tokens=900))), ('read', '', [50, 850])),
    # Bodies
    'byte order mark': (body(lambda t: '\ufeff'+json.dumps(chat(t))), read),
    'blank lines before the body': (body(lambda t: '\r\n \n'+json.dumps(chat(t))), read),
    'comments before the body': (body(lambda t: ': keep-alive\n\n: keep-alive\n\n'+json.dumps(chat(t))), read),
    'a stream': (body(lambda t: events(delta(role='assistant', content=''), delta(content=t[:1]), delta(content=t[1:]), delta('stop')), **{'Content-Type': 'text/event-stream'}), read),
    'a stream with comments and event names': (body(lambda t: events(delta(content=t), delta('stop'), before=': OK\n\nevent: message\nid: 1\n')), read),
    'a stream of one whole message': (body(lambda t: events(chat(t), end='')), read),
    'a stream of reasoning and answer': (body(lambda t: events(delta(reasoning_content=thought[:9]), delta(reasoning_content=thought[9:]), delta(content=t), delta('stop'))), ('thought',)),
    'a stream without an end': (body(lambda t: events(delta(content=t[:1]), end='')), broken),
    'an empty stream': (body(lambda t: events()), broken),
    'a stream that says nothing': (body(lambda t: events(delta(role='assistant'), delta('stop'))), empty),
    'an error in a stream': (body(lambda t: events(delta(content=t[:1]), dict(error=dict(message='out of memory')))), ('failed', 'out of memory')),
    'NaN and Infinity': (body(lambda t: json.dumps(chat(t) | dict(score=nan, more=inf))), read),
    'a number beyond all floats': (body(lambda t: json.dumps(chat(t))[:-1]+', "x": 1e999}'), read),
    'duplicate keys, the last one null': (body(lambda t: '{"choices": [{"finish_reason": "stop", "message": {"content": "Yes", "content": null}}]}'), empty),
    'invalid UTF-8': (wire(lambda t: plain(json.dumps(chat('XX')).encode().replace(b'XX', t.encode()+b' \xff'))), ('read', ' \ufffd')),
    'half of a character': (body(lambda t: json.dumps(chat(t+' \ud83d'))), ('read', ' \ufffd')),
    'a list around the body': (body(lambda t: [chat(t)]), read),
    'the wrong content type': (wire(lambda t: plain(json.dumps(chat(f'{t} é'), ensure_ascii=False), 'text/html; charset=latin-1')), ('read', ' é')),
    'no content type': (wire(lambda t: plain(json.dumps(chat(t))).replace(b'Content-Type: application/json\r\n', b'')), read),
    'no content length': (wire(lambda t: b'HTTP/1.1 200 OK\r\n\r\n'+json.dumps(chat(t)).encode()), read),
    'gzip': (wire(lambda t: plain(gzip.compress(json.dumps(chat(t)).encode()), extra='Content-Encoding: gzip\r\n')), read),
    'gzip that is none': (wire(lambda t: plain(json.dumps(chat(t)), extra='Content-Encoding: gzip\r\n')), ('failed', 'no connection')),
    'an error page': (body(lambda t: '<html><body>Yes. City 1 is under maintenance</body></html>'), broken),
    'an empty body': (body(lambda t: ''), broken),
    'null': (body(lambda t: 'null'), broken),
    'a string': (body(lambda t: '"Yes, City 1"'), broken),
    'plain text': (body(lambda t: 'Yes, City 1'), broken),
    'JSON that breaks off': (body(lambda t: json.dumps(chat(t))[:-9]), broken),
    'nested too deeply': (body(lambda t: '['*100000), broken),
    'no choices': (body(lambda t: dict(model='bad-1')), broken),
    'choices empty': (body(lambda t: dict(choices=[])), broken),
    'choices null': (body(lambda t: dict(choices=None)), broken),
    'choices a string': (body(lambda t: dict(choices='Yes, City 1')), broken),
    'choices of strings': (body(lambda t: dict(choices=['Yes', 'City 1'])), broken),
    'no message': (body(lambda t: dict(choices=[dict(index=0, finish_reason='stop')])), broken),
    'message null': (body(lambda t: dict(choices=[dict(message=None, finish_reason='stop')])), broken),
    'an error with status 200': (body(lambda t: dict(error=dict(message='upstream timed out'))), ('failed', 'upstream timed out')),
    'an error as a string with status 200': (body(lambda t: dict(error='upstream timed out')), ('failed', 'upstream timed out')),
    'a wrong key with status 200': (body(lambda t: dict(error=dict(message='No such key', code=401))), ('stops', 'No such key')),
    # Connections
    'length too long': (wire(lambda t: b'HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n'+json.dumps(chat(t)).encode()), ('failed', 'no connection')),
    'length too short': (wire(lambda t: b'HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n'+json.dumps(chat(t)).encode()), broken),
    'length is no number': (wire(lambda t: b'HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n'+json.dumps(chat(t)).encode()), ('failed', 'no connection')),
    'no HTTP at all': (wire(lambda t: b'+OK City 1, Yes\r\n'), ('failed', 'no connection')),
    'hangs up': (wire(lambda t: b''), ('failed', 'no connection')),
    'never ends': (silent, ('failed', 'no response within 0.4 s')),
    'too slow': (slow, ('failed', 'no response within 0.4 s')),
    'chunks that break off': (wire(lambda t: b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{"choices"'), ('failed', 'no connection')),
    # Statuses
    '103 before the reply': (wire(lambda t: b'HTTP/1.1 103 Early Hints\r\n\r\n'+plain(json.dumps(chat(t)))), read),
    '201': (body(chat, 201), read),
    '204': (wire(lambda t: b'HTTP/1.1 204 No Content\r\n\r\n'), broken),
    '304': (wire(lambda t: b'HTTP/1.1 304 Not Modified\r\n\r\n'), ('failed', '304')),
    '307 that leads there': (moved, read),
    '307 in a circle': (loops, ('failed', 'no connection')),
    '307 without an address': (error(307, 'Elsewhere'), ('failed', '307')),
    '400': (error(400, 'Bad request'), ('failed', r'Bad request \(400\)')),
    '400, a filter': (error(400, 'Rejected by content policy: yes'), ('failed', 'refused: Rejected')),
    '400, no such model': (error(400, 'The model `bad` does not exist'), ('stops', 'does not exist')),
    '401': (error(401, 'Who are you?'), ('stops', 'right key')),
    '402': (error(402, 'Pay first'), ('stops', 'no credit')),
    '403': (error(403, 'Not for you'), ('stops', 'may not use it')),
    '404': (error(404, 'Nothing here'), ('stops', '--base_url')),
    '413': (error(413, 'Too large'), ('failed', r'\(413\)')),
    '418': (error(418, 'Yes, a teapot'), ('failed', r'teapot \(418\)')),
    '422': (body(lambda t: dict(detail=[dict(loc=['body', 'messages'], msg='Yes is no message')]), 422), ('failed', r'\(422\)')),
    '451': (error(451, 'Not in your country'), ('failed', r'\(451\)')),
    '429, the quota': (error(429, 'insufficient_quota'), ('stops', 'quota')),
    '429, come back in a day': (error(429, 'Slow down', **{'Retry-After': '86400'}), ('stops', 'left alone')),
    '500': (error(500, 'Yes'), ('failed', r'Yes \(500\)')),
    '529': (error(529, 'Overloaded'), ('failed', r'Overloaded \(529\)')),
    # At the first attempt only
    'once 429, Retry-After in seconds': (once(error(429, 'Slow down', **{'Retry-After': '0.1'})), ('retried',)),
    'once 429, Retry-After is a date': (once(error(429, 'Slow down', **{'Retry-After': 'Wed, 21 Oct 2015 07:28:00 GMT'})), ('retried',)),
    'once 429, Retry-After is nonsense': (once(error(429, 'Slow down', **{'Retry-After': 'soon'})), ('retried',)),
    'once 429, Retry-After is infinite': (once(error(429, 'Slow down', **{'Retry-After': 'inf'})), ('retried',)),
    'once 408': (once(error(408, 'Timed out')), ('retried',)),
    'once 529': (once(error(529, 'Overloaded')), ('retried',)),
    'once 503 with a page': (once(body(lambda t: '<h1>Yes</h1>', 503)), ('retried',)),
    'once an error with status 200': (once(body(lambda t: dict(error=dict(message='busy', code=429)))), ('retried',)),
    'once an empty body': (once(body(lambda t: '')), ('retried',)),
    'once half an answer, network_error': (once(body(lambda t: chat('Ci', 'network_error'))), ('retried',)),
    'once hung up': (once(wire(lambda t: b'')), ('retried',)),
}

@pytest.fixture(scope='module')
def server():
    server = Server()
    yield server
    server.close()

def behave(server, send, vocabulary=None): # From now on
    def mood(server, q, n):
        text = 'Yes' if 'Do you know' in q['messages'][0]['content'] else 'City 1'
        act = send(n) if send.__code__.co_varnames[0]=='n' else send
        return lambda handler, q: act(handler, text)
    server.mood,server.vocabulary,server.seen,server.tokenized = mood,vocabulary,[],[]

def remote_of(server, **how): return APIEngine('bad', server.url, KEY, timeout=.4, tries=2, **how)

@pytest.mark.parametrize('name', TABLE)
def test_a_bad_server(server, name):
    send,(kind,*more) = TABLE[name]
    behave(server, send)
    remote = remote_of(server)
    if kind=='stops':
        with pytest.raises(ConnectionError, match=more[0]) as e: remote(PROMPTS)
        assert '\n' not in str(e.value) and KEY not in str(e.value)
        return
    direct,meta = remote(PROMPTS)
    assert len(server.seen)>=2 and KEY not in repr((direct, meta))
    fine = Completion('City 1'),Completion('Yes', log_odds=2.)
    for how,(claim,match) in CLAIMS.items():
        if kind=='failed':
            for pair in [(direct, meta), (fine[0], meta), (direct, fine[1])]:
                r = record(ROW, claim, match, *pair)
                assert r.failed and re.search(more[0], r.failed), r
                assert (r.correct, r.yes, r.unparsed, r.log_odds, r.log_odds_bound, r.p_yes)==(None, None, False, None, None, None), r
            continue
        r = record(ROW, claim, match, direct, meta)
        assert (r.failed, r.correct)==(None, True), r
        assert r.yes is (None if how=='logits' else True) # No log-odds were sent: unreadable, and not a No
    if kind!='failed':
        assert [direct.text, meta.text]==[t+(more[0] if more else '') for t in ('City 1', 'Yes')]
        assert all(thought in r.reasoning if kind=='thought' else not r.reasoning for r in (direct, meta))
        assert all(r.tries==2 for r in (direct, meta)) if kind=='retried' else direct.tries==1
    assert all(type(n) is int and n>=0 for r in (direct, meta) for n in (r.n_tokens, r.prompt_tokens))
    if len(more)>1: assert [direct.prompt_tokens, direct.n_tokens]==more[1]

def test_the_table_is_long_enough(): assert len(TABLE)>=100

# Log-odds. `listed` is what the server lists at each token of its reply to the meta question

def token(text, logprob=-.1, **top): return dict(token=text, logprob=logprob, top_logprobs=[dict(token=t, logprob=p) for t,p in top.items()])
lean = token('Yes', -.5, Yes=-.5, No=-1.5, The=-3.)
def lone(p): return token('Yes', -.5, Yes=-.5, The=-1.5, No=p)

ODDS = { # Content, further fields of the message, entries, and what follows: log-odds, sign of the bound
    'both listed': ('Yes', {}, [lean], 1., None),
    'white space first': ('\n\nYes', {}, [token('\n\n', Yes=-9., No=-1.), lean], 1., None),
    'space inside the token': (' Yes', {}, [token('▁Yes', -.5, **{'▁Yes': -.5, '▁No': -1.5})], 1., None),
    'after a block': ('<think>No.</think>\nYes', {}, [token(t, No=-.1, Yes=-5.) for t in ('<think>', 'No', '.', '</think>', '\n')] + [lean], 1., None),
    'after a block that is a field, tags listed': ('Yes', dict(reasoning='No.'), [token(t, No=-.1, Yes=-5.) for t in ('<think>', 'No', '.', '</think>', '\n')] + [lean], 1., None),
    'reasoning is a field, only the answer listed': ('Yes', dict(reasoning='No.'), [lean, token('<|im_end|>')], 1., None),
    'reasoning is a field, its tokens among the others': ('Yes', dict(reasoning='Yes, or No'), [lean, token(','), token(' or'), token(' No'), token('Yes')], None, None),
    'tokens of another text': ('Yes', {}, [token('No', -.1, No=-.1, Yes=-3.)], None, None),
    'no null': ('Yes', {}, [lone(None)], None, 1),
    'no at -Infinity': ('Yes', {}, [lone(-inf)], None, 1),
    'no at NaN': ('Yes', {}, [lone(nan)], None, 1),
    'no at -9999': ('Yes', {}, [lone(-9999.)], None, 1),
    'no as a string': ('Yes', {}, [lone('-3.0')], None, 1),
    'no positive': ('Yes', {}, [lone(3.)], None, 1),
    'no absent': ('Yes', {}, [token('Yes', -.5, Yes=-.5, The=-1.5)], None, 1),
    'yes absent': ('No', {}, [token('No', -.5, No=-.5, The=-1.5)], None, -1),
    'yes absent, and no unlikely': ('The', {}, [token('The', -.2, The=-.2, No=-6.)], None, None),
    'neither listed': ('The', {}, [token('The', -.2, The=-.2)], None, None),
    'more than all': ('Yes', {}, [token('Yes', 0., Yes=0., No=0.)], None, None),
    'nothing but the chosen token': ('Yes', {}, [dict(token='Yes', logprob=-.01)], None, 1),
    'no entries': ('Yes', {}, [], None, None),
    'entries of another kind': ('Yes', {}, ['Yes', None], None, None),
}

@pytest.mark.parametrize('name', ODDS)
def test_log_odds(server, name):
    content,more,entries,odds,sign = ODDS[name]
    behave(server, body(lambda t: chat(content, top=dict(logprobs=dict(content=entries)), **more)))
    reply, = remote_of(server)(PROMPTS[1:])
    assert reply.failed is None and reply.log_odds==(None if odds is None else pytest.approx(odds))
    assert reply.log_odds_bound is None if sign is None else reply.log_odds_bound*sign>0
    claim = logits_claim()
    assert record(ROW, claim, CLAIMS['logits'][1], Completion('City 1'), reply).yes is (odds>0 if odds is not None else sign>0 if sign else None) # A bound decides by its sign

VOCABULARY = {'Yes': [11], ' Yes': [12], 'yes': [13], 'No': [21], ' No': [22], 'no': [23]}

def test_exact_tokens(server): # A server as vLLM: lists what it is asked for, by id
    def send(handler, text): handler.say(200, json.dumps(chat(text, top=dict(logprobs=dict(content=[
        token('token_id:11', -.5, **{'token_id:11': -.5, 'token_id:13': -8., 'token_id:21': -7., 'token_id:22': -9999., 'token_id:23': -12.})])))))
    behave(server, send, VOCABULARY)
    remote = remote_of(server)
    reply, = remote(PROMPTS[1:])
    assert reply.log_odds==pytest.approx(6.5, abs=.01) and remote.options.alternatives['token_ids'][0]==(11, 13, 12, 21, 23, 22)
    assert {'token_ids', 'top_logprobs', 'thinking'}<=remote.options.accepted
    looked_up = len(server.tokenized)
    remote(PROMPTS*3)
    assert looked_up==len(server.tokenized)==12 and all(q['add_special_tokens'] is False for q in server.tokenized)

@pytest.mark.parametrize('vocabulary,asks', [(None, 1), ({'Yes': []}, 1), ({'Yes': 'Yes'}, 1), ({'Yes': [-1]}, 1), ({'Yes': [1.5]}, 1), ({'Yes': [7]}, 12), ({'Yes': [7], 'No': [7]}, 12)])
def test_a_strange_tokenizer_is_no_failure(server, vocabulary, asks):
    behave(server, body(lambda t: chat(t, top=dict(logprobs=dict(content=[lean])))), vocabulary)
    remote = remote_of(server)
    assert [r.failed for r in remote(PROMPTS*4)]==[None]*8 and remote(PROMPTS[1:])[0].log_odds==pytest.approx(1.)
    assert len(server.tokenized)==asks and remote.options.alternatives['token_ids'][0] is None

def refusing(*fields, words='Unrecognized request argument: {}'): # A server that knows nothing but OpenAI's own fields
    def mood(server, q, n):
        odd = [f for f in fields if f in q]
        text = 'Yes' if 'Do you know' in q['messages'][0]['content'] else 'City 1'
        if odd: return lambda handler, q: handler.say(400, json.dumps(dict(error=dict(message=words.format(odd[0])))))
        return lambda handler, q: handler.say(200, json.dumps(chat(text)))
    return mood

@pytest.mark.parametrize('words', ['Unrecognized request argument supplied: {}', 'Bad request'])
def test_a_strict_server_refuses_each_field_once(server, words):
    behave(server, body(chat), VOCABULARY)
    server.mood = refusing('chat_template_kwargs', 'logprob_token_ids', words=words)
    remote = remote_of(server)
    assert not any(r.failed for r in remote(PROMPTS*5))
    assert len(server.seen)==10+2 and remote.options.alternatives['thinking']==remote.options.alternatives['token_ids']==(None,)
    assert remote.options.alternatives['reasoning_effort'][0]=='none' and remote.options.alternatives['temperature'][0]==0
    remote(PROMPTS)
    assert len(server.seen)==14

def test_thinking_is_asked_for(server):
    heard = []
    def mood(server, q, n): return heard.append(q) or (lambda handler, q: handler.say(200, json.dumps(chat('Yes'))))
    behave(server, body(chat))
    server.mood = mood
    remote_of(server)(PROMPTS[:1]), remote_of(server, enable_thinking=True)(PROMPTS[:1]), remote_of(server, max_reasoning_tokens=64)(PROMPTS[:1])
    assert [q['chat_template_kwargs']['enable_thinking'] for q in heard]==[False, True, False]
    assert [q['reasoning_effort'] for q in heard]==['none', 'low', 'none']
    assert [q['max_completion_tokens'] for q in heard]==[32, 1056, 96]

def test_a_template_that_opens_the_block(server): # DeepSeek-R1 without a reasoning parser: a reply that was cut off has no tag at all
    def send(handler, text): handler.say(200, json.dumps(chat(thought+('</think>'+text if len(handler.server.seen)<5 else ''), 'stop' if len(handler.server.seen)<5 else 'length')))
    behave(server, send)
    replies = remote_of(server, concurrency=1)(PROMPTS*3)
    assert [bool(r.failed) for r in replies]==[False]*4 + [True]*2 and replies[4].reasoning==thought

ROWS = [dict(ROW, question_id=str(i), question=f'What is the capital of Country {i}?') for i in range(30)]
def plan_of(out): return Plan(out, dict(claim='meta'), resolve_protocol('default'), meta_claim(), ROWS, counts={}, signals=None, judge=None)

def test_a_run_says_what_failed(server, tmp_path, capsys): # The reasoning is noticed at the first row, and the failures are counted at the end
    (tmp_path/'records').mkdir()
    def send(handler, text): handler.say(200, json.dumps(chat(f'<think>{thought}</think>{text}' if len(handler.server.seen)%3 else '<think>', 'stop')))
    behave(server, send)
    plan = plan_of(tmp_path)
    run_and_bill(plan, remote_of(server, concurrency=1), (0., 0.))
    out = capsys.readouterr().out
    assert out.count('bad writes reasoning although --no-enable_thinking: give --max_reasoning_tokens 1024, its reasoning is not scored')==1
    assert scores(load_records(plan.records)).failed==20
    records = evaluate_api(tmp_path/'records'/'again.jsonl', remote_of(server, concurrency=1), ROWS, meta_claim())
    assert re.fullmatch(r'20 of 30 rows failed: 20 x no answer within \d+ tokens: raise --max_reasoning_tokens', failures(records))

def test_a_run_that_stops_says_why(server, tmp_path, capsys):
    (tmp_path/'records').mkdir()
    behave(server, body(lambda t: chat(None)))
    with pytest.raises(ConnectionError, match='20 prompts in a row failed'):
        run_and_bill(plan_of(tmp_path), remote_of(server, concurrency=1), (0., 0.))
    assert re.search(r'(\d+) of \1 rows failed: \1 x empty reply \(finish_reason stop\)', capsys.readouterr().out)

def test_a_cancellation_that_is_lost_is_repeated(): # As `asyncio.wait_for` loses one before Python 3.12 when its work ends at that moment
    ended = []
    async def stubborn():
        try: await asyncio.sleep(60)
        except asyncio.CancelledError: await asyncio.sleep(1)
        ended.append('by itself')
    async def breaks():
        await asyncio.sleep(0)
        raise ConnectionError('over')
    with pytest.raises(ConnectionError, match='over'): asyncio.run(gather_or_cancel([stubborn(), breaks()]))
    assert ended==[]
