"""Members a second with 1, 2 and 4 processes of one thread each, in turns

    python tools/processes.py runs/processes_demo.json
"""
import json,os,subprocess,sys,tempfile
from pathlib import Path
from statistics import median
from esma_nb.core.files import write_json

WORDS = '--num_iterations 5 --num_val_samples 20 --evaluate_interval 0 --model_save_interval 0 --device cpu'.split()

def one(n, update, words=()):
    "Medians of a run's iterations but the first."
    with tempfile.TemporaryDirectory() as out:
        command = ['torchrun', '--nproc_per_node', str(n), '-m', 'esma_nb.evolution.train', *WORDS, *words, '--update', update, '--output_dir', out+'/run']
        subprocess.run(command, check=True, env=dict(os.environ, OMP_NUM_THREADS='1', TQDM_DISABLE='1'), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lines = [json.loads(l) for l in (Path(out)/'run'/'metrics.jsonl').open()][1:]
    keys = [k for k in lines[0] if k.endswith('_seconds') or k=='seconds']
    return {k: median(l[k] for l in lines) for k in keys}

def main(to, *words):
    found = {}
    for _ in range(2):
        for n,update in ((1, 'whole'), (2, 'whole'), (2, 'sharded'), (4, 'whole')):
            found.setdefault(f'{n} {update}', []).append(one(n, update, words))
            print(n, update, {k: round(v, 3) for k,v in found[f'{n} {update}'][-1].items()}, flush=True)
    best = {k: min(runs, key=lambda r: r['seconds']) for k,runs in found.items()}
    write_json(to, dict(command=' '.join(['python tools/processes.py', *sys.argv[1:]]), cores=os.cpu_count(), population_size=32, words=WORDS, runs=best))
    for k,r in best.items(): print(k, f"{32/r['seconds']:.2f} members/s, {best['1 whole']['seconds']/r['seconds']:.2f} times one process")

if __name__=='__main__': main(*sys.argv[1:])
