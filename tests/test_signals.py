"Signals of confidence: formulas against brute force, both commands end to end, refusals, records of earlier versions"
import json,os,subprocess,sys
from math import log
from pathlib import Path
import numpy as np
import pytest
from servers import KEY,Server
from esma_nb.evaluation.records import Record,load_records,signals_table
from esma_nb.metrics.calibration import auroc
from esma_nb.metrics.selective import coverage_at_risk,prr
from esma_nb.prompts.templates import Completion,direct_prompt
from esma_nb.signals.elicit import ask_signals,p_true,read_percent,signals
from esma_nb.signals.sampling import cluster,semantic_entropy

BIN = Path(sys.executable).parent
ENV = dict(os.environ, MY_KEY=KEY, OMP_NUM_THREADS='1', TQDM_DISABLE='1', NO_PROXY='127.0.0.1', no_proxy='127.0.0.1')
ALL = [*signals]
ALL.remove('p_true_letters')

def run(*words): return subprocess.run([str(w) for w in words], capture_output=True, text=True, env=ENV, timeout=600)

def test_semantic_entropy_against_the_formula():
    rng = np.random.default_rng(0)
    for k in range(1, 12):
        groups,x = rng.integers(0, 4, k).tolist(),rng.normal(-20, 5, k)
        p = np.exp(x)/np.exp(x).sum()
        mass = [sum(p[i] for i in range(k) if groups[i]==g) for g in {*groups}]
        share = [groups.count(g)/k for g in {*groups}]
        assert abs(semantic_entropy(groups, x.tolist()) + sum(m*log(m) for m in mass))<1e-9
        assert abs(semantic_entropy(groups) + sum(m*log(m) for m in share))<1e-9

def test_p_true_against_the_formula():
    for t,f in [(.6, .2), (.01, .9), (.5, .5)]: assert abs(p_true(log(t/f)) - t/(t+f))<1e-9

def test_prr_is_the_area_over_the_oracle():
    rng = np.random.default_rng(1)
    for _ in range(20):
        right,score = rng.random(30)<.6,rng.permutation(30)
        kept = right[np.argsort(-score)]
        errors = np.r_[0, (~kept).cumsum()]/30
        area,e = ((errors[1:]+errors[:-1])/2).sum()/30,errors[-1]
        assert abs(prr(right, score) - (e/2-area)/(e/2-e**2/2))<1e-9
        assert abs(prr(right, score) - (2*auroc(right, score)-1))<1e-9
        best = max([n for n in range(1, 31) if (~kept[:n]).sum()<=.2*n], default=0)/30
        assert abs(coverage_at_risk(right, score, .2)-best)<1e-9

def test_percent_is_never_guessed():
    for text,p in [('I would say 70%', .7), ('100 percent', 1), ('70-80%', None), ('nothing', None), ('300', None), ('50/100', .5)]: assert read_percent(text)==p, text

def test_another_judge():
    assert cluster(['car', 'automobile', 'boat'], lambda a, b: {a, b}=={'car', 'automobile'})==[0, 0, 1]

def test_engine_that_loses_a_reply():
    rows = [dict(question='Who?')]
    with pytest.raises(ValueError, match='0 replies to 1'): ask_signals(lambda ps: [Completion('x')]*(len(ps)-1), rows, ['percent'], [direct_prompt('Who?')], [Completion('x')])

def test_records_of_earlier_versions(tmp_path):
    path = tmp_path/'old.jsonl'
    path.write_text(json.dumps(dict(question_id='0', question='Who?', answers=['x'], direct_output='x', correct=True, yes=True))+'\n')
    assert load_records(path)[0].signals is None and signals_table(load_records(path))==''

def test_miniature_end_to_end(tmp_path):
    words = [BIN/'esma_nb_eval', '--num_samples', '12', '--samples', '3', '--output_dir', tmp_path/'a', '--signals', *ALL]
    done = run(*words)
    assert done.returncode==0, done.stderr
    records = load_records(tmp_path/'a'/'records'/'meta.jsonl')
    assert len(records)==12 and all([*r.signals]==ALL for r in records)
    for r in records:
        s = r.signals
        assert s['likelihood']<=0 and s['entropy']<=0 and 0<=s['consistency']<=1 and -log(3)-1e-9<=s['semantic_entropy']<=0
        assert s['p_true'] is None # The miniature's vocabulary has no single token for it
    assert '| semantic_entropy_rao' in done.stdout and 'p_true: not known, because it needs log-odds of True against False' in done.stdout
    plain = run(BIN/'esma_nb_eval', '--num_samples', '12', '--output_dir', tmp_path/'b')
    other = load_records(tmp_path/'b'/'records'/'meta.jsonl')
    assert [(r.direct_output, r.log_odds) for r in records]==[(r.direct_output, r.log_odds) for r in other] and json.loads((tmp_path/'b'/'args.json').read_text())['args']['samples'] is None
    scored = run(BIN/'esma_nb_score', tmp_path/'a', '--risk', '.3')
    assert 'coverage at risk 0.3' in scored.stdout, scored.stderr

def test_mistakes_are_one_line(tmp_path):
    mine = tmp_path/'choices.csv'
    mine.write_text('question,answers\n"Which is in Italy? (A) Rome (B) Oslo",Rome\n')
    for words,says in [(['--signals', 'verbal'], 'choose from likelihood'), (['--signals', 'consistency', '--samples', '1'], 'give 2 or more'),
            (['--signals', 'consistency', '--temperature', '0'], 'above 0'), (['--signals', 'percent', 'percent'], 'twice'),
            (['--signals', 'p_true_letters', '--dataset', mine], 'use p_true'), (['--claim', 'letters', '--dataset', mine], 'use the claim tenths')]:
        done = run(BIN/'esma_nb_eval', *words, '--output_dir', tmp_path/'x')
        assert done.returncode==2 and says in done.stderr and done.stderr.count('\n')==1, done.stderr
    assert not (tmp_path/'x').exists()

def sure(handler, body): # Lists log-probabilities; says 80 when it is asked for a percentage; samples differ
    text,logprobs = body['messages'][0]['content'],None
    says = '80' if 'percent' in text else 'True' if 'True' in text else 'Yes' if 'Do you know' in text else 'City'
    if body.get('temperature')==.7: says = f'City {len(handler.server.seen)}'
    if body.get('logprobs'): logprobs = dict(content=[dict(token=says, logprob=-.5, top_logprobs=[dict(token=says, logprob=-.5), dict(token={'Yes': 'No'}.get(says, 'False'), logprob=-1.5)])])
    handler.say(200, json.dumps(dict(model='m', choices=[dict(index=0, message=dict(role='assistant', content=says), logprobs=logprobs, finish_reason='stop')],
        usage=dict(prompt_tokens=50, completion_tokens=3))))

def test_remote_model(tmp_path):
    server = Server(lambda *_: sure)
    questions = tmp_path/'q.jsonl'
    questions.write_text(''.join(json.dumps(dict(question_id=str(i), question=f'Capital {i}?', answers=['City']))+'\n' for i in range(4)))
    try: done = run(BIN/'esma_nb_eval_api', '--model', 'm', '--base_url', server.url, '--key_env', 'MY_KEY', '--dataset', questions, '--signals', *ALL,
        '--samples', '3', '--temperature', '.7', '--output_dir', tmp_path/'run')
    finally: server.close()
    assert done.returncode==0, done.stderr
    lines = [json.loads(l) for l in (tmp_path/'run'/'records'/'meta.jsonl').open()]
    for l in lines:
        s = l['signals']
        assert s['likelihood']==-.5 and s['percent']==.8 and abs(s['p_true']-1/(1+np.exp(-1)))<1e-9 and s['entropy'] is None
        assert s['consistency']==0 and abs(s['semantic_entropy']+log(3))<1e-9 and abs(s['semantic_entropy_rao']+log(3))<1e-9
        assert l['tries']==7 and l['billed']==[350, 21] # Answer, claim, percentage, P(True) and 3 samples
    assert done.stdout.count('entropy: not known, because it needs log-probabilities of the whole vocabulary')==1
    samples = [json.loads(l) for l in (tmp_path/'run'/'samples.jsonl').open()]
    assert len(samples)==4 and all(l['seeded'] and l['clusters']==[0, 1, 2] for l in samples)

def test_samples_have_seeds_and_are_grouped_again(tmp_path):
    "Another seed for each question and sample; without, where the server says 400; clusters by matcher and by a judge, without new samples."
    seeds,judged = [],[]
    def say(handler, text): handler.say(200, json.dumps(dict(model='m', usage=dict(prompt_tokens=50, completion_tokens=3),
        choices=[dict(index=0, message=dict(role='assistant', content=text), finish_reason='stop')])))
    def town(handler, body):
        text = body['messages'][0]['content']
        if 'You grade one reply' in text: return judged.append(text) or say(handler, 'incorrect' if 'village' in text else 'correct')
        if 'Capital 3' in text and 'seed' in body: return handler.say(400, json.dumps(dict(error=dict(message="Unknown parameter: 'seed'"))))
        if body.get('temperature')!=1: return say(handler, 'Yes' if 'Do you know' in text else 'city')
        seeds.append(body.get('seed'))
        say(handler, ('town', 'city', 'village')[len(seeds)%3])
    def ask(folder, *numbers):
        questions = tmp_path/f'{folder}.jsonl'
        questions.write_text(''.join(json.dumps(dict(question_id=str(i), question=f'Capital {i}?', answers=['city']))+'\n' for i in numbers))
        done = run(BIN/'esma_nb_eval_api', '--model', 'm', '--base_url', server.url, '--key_env', 'none', '--dataset', questions, '--concurrency', '1',
            '--signals', 'consistency', '--samples', '3', '--output_dir', tmp_path/folder)
        assert done.returncode==0, done.stderr
        return done.stdout,json.loads((tmp_path/folder/'summary.json').read_text())['granted']['seed'],[json.loads(l) for l in (tmp_path/folder/'samples.jsonl').open()]
    server = Server(lambda *_: town)
    try:
        said,granted,lines = ask('with', 0, 1, 2)
        assert granted is True and len({*seeds})==9 and None not in seeds and 'takes no seed' not in said and all(l['seeded'] for l in lines)
        score = [BIN/'esma_nb_score', tmp_path/'with', '--cluster_by']
        assert '| consistency' in run(*score, 'exact').stdout and len(seeds)==9
        before = (tmp_path/'with'/'records'/'meta.jsonl').read_bytes()
        by_judge = run(*score, 'judge', '--judge_model', 'j', '--judge_url', server.url)
        assert by_judge.returncode==0 and len(judged)==3*6 and 'judge: 18 judgements' in by_judge.stdout, by_judge.stderr
        assert (tmp_path/'with'/'records'/'meta.jsonl').read_bytes()==before and len(seeds)==9
        said,granted,lines = ask('without', 3)
        assert granted is None and seeds[9:]==[None]*3 and 'm takes no seed: its sampled answers cannot be repeated' in said and not lines[0]['seeded']
    finally: server.close()
    for words,says in [(['--cluster_by', 'judge'], 'which judge?'), (['--cluster_by', 'mood'], "no matcher 'mood'")]:
        done = run(BIN/'esma_nb_score', tmp_path/'with', *words)
        assert done.returncode==2 and says in done.stderr and done.stderr.count('\n')==1
