"""Where prefill and a decode step spend their time: a member of SmolLM2 on 1 thread, as a parallel member of `esma_nb_train` has it.

    python tools/profile_decode.py runs/profile_smollm2.json --data_dir ../shared/data/nq_open [--model MODEL] [--dtype bfloat16]

For the prefill of 64 prompts and for steps of 64, 32, 16 and 8 rows it prints the milliseconds by part, and what the products with the weights would take at the rate of a large
product or at the bandwidth of a copy. A part is timed around its calls, so the times of all parts add up to the step.
"""
import argparse
from collections import Counter
from time import perf_counter
import torch
from esma_nb.bench.bench import machine
from esma_nb.bench.roofline import machine_peaks
from esma_nb.core.runs import write_json
from esma_nb.datasets.registry import load_rows
from esma_nb.engines import llama,prepack
from esma_nb.engines.encoding import encode
from esma_nb.engines.hf import greedy
from esma_nb.engines.models import cast_parameters,load_model
from esma_nb.engines.prefix_cache import common_prefix
from esma_nb.evaluation.controls import markdown_table
from esma_nb.prompts.elicitation import meta_claim

parts = ('products', 'attention', 'normalization', 'rotation', 'rest')

class Timer:
    "Adds the seconds of wrapped calls to their part."
    def __init__(self): self.spent = Counter()
    def wrap(self, part, f):
        def timed(*args, **kwargs):
            start = perf_counter()
            result = f(*args, **kwargs)
            self.spent[part] += perf_counter()-start
            return result
        return timed

def instrument(model, timer): # Wraps the parts of a step; the rest is what remains of it
    prepack.Packed.linear = timer.wrap('products', prepack.Packed.linear)
    llama.LlamaDecoder.attend_by_kind = timer.wrap('attention', llama.LlamaDecoder.attend_by_kind)
    llama.rotate = timer.wrap('rotation', llama.rotate)
    for m in model.modules():
        if type(m).__name__.endswith('RMSNorm'): m.forward = timer.wrap('normalization', m.forward)

def started(model, rows, kinds, n): # A decoder that has read all prompts and keeps `n` rows, as many of each kind
    decoder = llama.LlamaDecoder(model)
    tokens = greedy(decoder.start(rows, kinds, 32), rows)
    keep = torch.arange(len(rows)).view(2, -1)[:, :n//2].flatten()
    decoder.keep(keep)
    return decoder,tokens[keep]

def by_part(timer, start, times=1)->dict: # Milliseconds since `start`, by part
    total = perf_counter()-start
    spent = dict(timer.spent, rest=total-sum(timer.spent.values()))
    return {k: 1e3*spent.get(k, 0.)/times for k in parts}

def profile_prefill(model, rows, kinds, timer, times=3)->dict:
    for i in range(times+1):
        if i==1: timer.spent.clear(); start = perf_counter()
        llama.LlamaDecoder(model).start(rows, kinds, 32)
    return by_part(timer, start, times)

def profile_step(model, rows, kinds, n, timer, steps=24, warm=4)->dict:
    decoder,tokens = started(model, rows, kinds, n)
    for i in range(warm+steps):
        if i==warm: timer.spent.clear(); start = perf_counter()
        tokens = greedy(decoder.next(tokens), rows)
    return by_part(timer, start, steps)

def tokens_read(rows, kinds)->int: # By prefill: each shared prefix once
    of_kind = [[r for r,k in zip(rows, kinds) if k==kind] for kind in dict.fromkeys(kinds)]
    return sum(n + sum(len(r)-n for r in rs) for rs in of_kind for n in [common_prefix(rs)])

def product_minimum(model, n, of_head, peaks, size)->float: # Milliseconds: each weight of a linear layer multiplied with n rows, those of the head with `of_head`, and read once
    layers = [m for m in model.modules() if isinstance(m, prepack.PackedLinear)]
    weights = [m.packed.shape.numel() for m in layers]
    operations = sum(2*w*(of_head if m is model.lm_head else n) for m,w in zip(layers, weights))
    return 1e3*max(operations/peaks['flops'], sum(weights)*size/peaks['bandwidth'])

@torch.inference_mode()
def main(path, model, data_dir, dtype):
    torch.set_num_threads(1)
    net,tokenizer = load_model(model, 'float32', 'cpu')
    if dtype=='bfloat16': cast_parameters(net, torch.bfloat16)
    prepack.pack(net)
    claim,questions = meta_claim(),[r['question'] for r in load_rows('nq_open', data_dir=data_dir, num_samples=32)[0]]
    rows = encode(tokenizer, [f(q) for f in (claim.direct, claim.extra) for q in questions])
    peaks = machine_peaks(torch.device('cpu'), getattr(torch, dtype))
    timer = Timer()
    instrument(net, timer)
    kinds,size = ['direct']*32+['meta']*32,dict(float32=4, bfloat16=2)[dtype]
    read = tokens_read(rows, kinds)
    found = {f'prefill of {read} tokens': profile_prefill(net, rows, kinds, timer)} | {f'step of {n} rows': profile_step(net, rows, kinds, n, timer) for n in (64, 32, 16, 8)}
    for (name,f),n in zip(found.items(), (read, 64, 32, 16, 8)): f['products at the peak'] = product_minimum(net, n, min(n, 64), peaks, size)
    write_json(path, dict(machine=machine(torch.device('cpu')), model=model, dtype=dtype, peaks=peaks, milliseconds=found))
    names = list(next(iter(found.values())))
    print(markdown_table([['', 'all', *names], *([n, f'{sum(f[k] for k in parts):.1f}', *(f'{f[k]:.1f}' for k in names)] for n,f in found.items())]))

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('path')
    p.add_argument('--model', default='smollm2')
    p.add_argument('--data_dir', required=True)
    p.add_argument('--dtype', default='bfloat16', choices=('float32', 'bfloat16'))
    main(**vars(p.parse_args()))
