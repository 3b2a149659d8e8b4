"Whole commands of measuring: interrupted, continued, scored again"
import json,os,signal,subprocess,sys,time
from pathlib import Path

BIN = Path(sys.executable).parent
ENV = dict(os.environ, OMP_NUM_THREADS='1', TQDM_DISABLE='1')

def run(*words): return subprocess.run([str(w) for w in words], capture_output=True, text=True, env=ENV)

def table(text): return [l for l in text.splitlines() if l.startswith(('|', '-'))]

def test_interrupted_and_continued(tmp_path):
    out,words = tmp_path/'eval',[BIN/'esma_nb_eval', '--num-samples', '480', '--batch-size', '5', '--output-dir', tmp_path/'eval']
    path = out/'records'/'meta.jsonl'
    p = subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) # Who runs the tests in the background may have had it ignored
    while p.poll() is None and not (path.exists() and path.read_text().count('\n')>=10): time.sleep(.002)
    p.send_signal(signal.SIGINT)
    _,err = p.communicate()
    assert p.returncode==130 and 'the same command goes on from there' in err and err.count('\n')==1, err
    early = path.read_text()
    assert f"{early.count(chr(10))} of 480 questions are done" in err
    assert 10<=early.count('\n')<480
    done = run(*words)
    assert done.returncode==0, done.stderr
    assert path.read_text().startswith(early) and path.read_text().count('\n')==480
    ids = [json.loads(l)['question_id'] for l in path.open(encoding='utf-8')]
    assert len(set(ids))==480
    scored = run(BIN/'esma_nb_score', out)
    assert table(scored.stdout)==table(done.stdout)!=[]

def test_mistakes_are_one_line(tmp_path):
    for words,says in [(['--claim', 'gut'], 'choose one of'), (['--grader', 'fuzzy'], 'choose one of'), (['--dataset', 'nq'], 'no dataset'),
            (['--num_samples', '100000'], 'rows'), (['--split', 'tomorrow'], 'no split'), (['--data_dir', '/nowhere', '--dataset', 'nq_open'], '/nowhere')]:
        done = run(BIN/'esma_nb_eval', *words, '--output_dir', tmp_path/'x')
        assert done.returncode==2 and says in done.stderr and done.stderr.count('\n')==1, done.stderr
    assert not (tmp_path/'x').exists()
    done = run(BIN/'esma_nb_score', tmp_path)
    assert done.returncode==2 and 'holds no records' in done.stderr

def test_a_file_of_ones_own(tmp_path):
    mine = tmp_path/'mine.csv'
    mine.write_text('question,answers\nWhat is the capital of France?,Paris\n"What is the capital of Peru, the country?",Lima|Ciudad de Lima\n')
    done = run(BIN/'esma_nb_eval', '--dataset', mine, '--output_dir', tmp_path/'out')
    assert done.returncode==0, done.stderr
    assert len((tmp_path/'out'/'records'/'meta.jsonl').read_text().splitlines())==2
