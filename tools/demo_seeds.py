"""Train the demo with several seeds (or read runs that are finished), and print a row for each beside what it should reach.

    python tools/demo_seeds.py 0 1 2 3 4 [--noise=rademacher]

Held-out d′ (log-linear) below 0.5 before and at least 1.0 after, 95 % intervals apart, accuracy at most 3 points lower.
"""
import json,sys
from contextlib import redirect_stdout
from pathlib import Path
from esma_nb.evolution.train import train

def row(seed, **options): # `options` of `esma_nb_train`
    out = Path('out/' + '-'.join(['demo', *options.values(), f'seed{seed}']))
    with redirect_stdout(sys.stderr): s = train(seed=seed, output_dir=str(out), **options)
    b,a = s['before'],s['after']
    apart = a['d_prime_loglinear_ci'][0] > b['d_prime_loglinear_ci'][1]
    good = b['d_prime_loglinear']<.5 and a['d_prime_loglinear']>=1 and apart and a['accuracy']>=b['accuracy']-.03
    def d(s): return f"{s['d_prime_loglinear']:5.2f} [{s['d_prime_loglinear_ci'][0]:.2f}, {s['d_prime_loglinear_ci'][1]:.2f}]"
    print(f"seed {seed:3} | d′ {d(b)} -> {d(a)} | accuracy {b['accuracy']:.3f} -> {a['accuracy']:.3f} | yes {b['yes_rate']:.2f} -> {a['yes_rate']:.2f} "
        f"| AUROC {b['auroc']:.2f} -> {a['auroc']:.2f} | {s['seconds']:.0f} s | {s['model_sha256'][:12]} | {'reached' if good else 'MISSED'}", flush=True)
    return good

if __name__ == '__main__':
    options = dict(a[2:].split('=') for a in sys.argv[1:] if a.startswith('--'))
    sys.exit(not all([row(int(s), **options) for s in [a for a in sys.argv[1:] if not a.startswith('--')] or '01234']))
