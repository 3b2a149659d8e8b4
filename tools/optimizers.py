"""Put what the runs of runs/optimizers.sh have found into one table: a line a run, with every number that nbs/explanations/optimizers.ipynb uses.

    python tools/optimizers.py out/optimizers > runs/optimizers/runs.csv
"""
import csv,sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from esma_nb.engines.models import load_model
from esma_nb.core.files import read_json,read_lines

scores = 'd_prime_loglinear','auroc','accuracy','alignment'

def row(run:Path, base)->dict: # One line
    s,lines = read_json(run/'summary.json'),read_lines(run/'metrics.jsonl')
    name,_,seed = run.name.rpartition('-')
    tuned = load_file(run/'model'/'model.safetensors')
    moved = sum((w-base[n]).square().sum().item() for n,w in tuned.items() if n in base)**.5
    found = dict(way=name, seed=int(seed))
    for k in scores:
        for when in ('before', 'after'): found |= {f'{k}_{when}': s[when][k], **dict(zip((f'{k}_{when}_low', f'{k}_{when}_high'), s[when][f'{k}_ci']))}
    return found | dict(yes_rate=s['after']['yes_rate'], reward_last4=sum(m['reward_mean'] for m in lines[-4:])/4,
        shortest=min(m['update_norm'] for m in lines), longest=max(m['update_norm'] for m in lines), moved=moved, seconds=s['seconds'], sha256=s['model_sha256'])

if __name__ == '__main__':
    base = dict(load_model('demo', device='cpu')[0].named_parameters())
    with torch.no_grad(): rows = [row(p.parent, base) for p in sorted(Path(sys.argv[1]).glob('*/summary.json'))]
    out = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator='\n')
    out.writeheader()
    out.writerows({k: f'{v:.6g}' if isinstance(v, float) else v for k,v in r.items()} for r in rows)
