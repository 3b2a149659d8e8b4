"""How long and how much memory do `esma_nb_delta` and `esma_nb_patch` take on two models of two billion numbers?

    nice python tools/patch_big.py [FOLDER] > runs/patch_big.txt      # 24 GB of disk, given back at the end

Both models are made up: bfloat16, four shards of about a gigabyte, 225 tensors in the shapes of a Llama with a large table of embeddings.
`cp` copies the files that a command reads, in the same run; its copies need not be safe on the disk when it ends, and ours are.
"""
import json,os,platform,shutil,subprocess,sys,tempfile,time
from pathlib import Path
import torch
from esma_nb.evolution.noise import parallel_map,slices,tensor_seed
from esma_nb.patching.tensors import create_safetensors,read,read_header,write

LAYERS,WIDTH,INNER,WORDS,SHARDS = 25,2048,8192,151936,4

def shapes():
    yield 'model.embed_tokens.weight',(WORDS, WIDTH)
    for i in range(LAYERS):
        for part in 'qkvo': yield f'model.layers.{i}.self_attn.{part}_proj.weight',(WIDTH, WIDTH)
        for part in ('gate', 'up'): yield f'model.layers.{i}.mlp.{part}_proj.weight',(INNER, WIDTH)
        yield f'model.layers.{i}.mlp.down_proj.weight',(WIDTH, INNER)
        for part in ('input', 'post_attention'): yield f'model.layers.{i}.{part}_layernorm.weight',(WIDTH,)

def make(folder, old=None):
    "Random weights, or those of `old` with a little noise that bfloat16 partly swallows."
    folder.mkdir()
    (folder/'config.json').write_text(json.dumps(dict(model_type='llama', architectures=['LlamaForCausalLM'], tie_word_embeddings=True, dtype='bfloat16')))
    every,where = dict(shapes()),{}
    for i in range(SHARDS):
        name = f'model-{i+1:05d}-of-{SHARDS:05d}.safetensors'
        mine = {n: (torch.bfloat16, s) for j,(n,s) in enumerate(every.items()) if j*SHARDS//len(every)==i}
        places,where = create_safetensors(folder/name, mine, dict(format='pt')),where | dict.fromkeys(mine, name)
        before = read_header(old/name)[0] if old else {}
        def fill(n):
            g = torch.Generator().manual_seed(tensor_seed((bool(old),), n) >> 1)
            for at in slices(places[n].size):
                w = torch.randn(at.stop-at.start, generator=g)
                write(places[n], at.start, (read(before[n], at).float() + w*1e-4 if old else w*.02).bfloat16())
        parallel_map(fill, list(mine))
    total = sum(p.stat().st_size for p in folder.glob('*.safetensors'))
    (folder/'model.safetensors.index.json').write_text(json.dumps(dict(metadata=dict(total_size=total), weight_map=where)))

def timed(words):
    "Seconds, and the most memory that the process ever held, in GB."
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, text=True)
    said = process.stdout.read()
    _,status,usage = os.wait4(process.pid, 0)
    if status: sys.exit(f'{words[0]} failed')
    return time.perf_counter()-start,usage.ru_maxrss/1e6*1.024,said

def command(name, *words):
    code = f'import sys; from esma_nb.core.cli import run_command; from esma_nb.patching.commands import {name}; run_command({name}.__wrapped__, sys.argv[1:])'
    return timed([sys.executable, '-c', code, *words])

def report(what, seconds, memory, copied, largest):
    print(f'{what}: {seconds:.1f} s, {seconds/copied:.2f} times the {copied:.1f} s of cp; at most {memory:.2f} GB of memory, {memory-largest:.2f} GB beyond the largest tensor ({largest:.2f} GB)', flush=True)

def copy(paths, to):
    to.mkdir()
    seconds,*_ = timed(['cp', *paths, to])
    shutil.rmtree(to)
    return seconds

def main(folder):
    base,tuned,delta,out = (folder/n for n in ('base', 'tuned', 'delta.safetensors', 'top10'))
    make(base), make(tuned, base)
    size = sum(p.stat().st_size for p in base.iterdir())
    largest = WORDS*WIDTH*2/1e9
    idle = timed([sys.executable, '-c', 'import esma_nb.patching.apply'])[1]
    print(f'{platform.platform()}, {os.cpu_count()} cores, torch {torch.__version__} with {torch.get_num_threads()} threads; the imports alone hold {idle:.2f} GB')
    print(f'2 models of {size/1e9:.2f} GB, {sum(torch.Size(s).numel() for _,s in shapes())/1e9:.3f} billion numbers in {len(dict(shapes()))} tensors and {SHARDS} shards', flush=True)
    copied = copy([*base.glob('*.safetensors')], folder/'c1') + copy([*tuned.glob('*.safetensors')], folder/'c2')
    seconds,memory,said = command('delta', base, tuned, '--output', delta)
    print(said.replace(str(folder), '.').strip())
    report('esma_nb_delta', seconds, memory, copied, largest)
    copied = copy([*base.glob('*.safetensors'), delta], folder/'c3')
    seconds,memory,said = command('patch', base, delta, '--top', 10, '--output', out)
    print(said.replace(str(folder), '.').strip())
    report('esma_nb_patch --top 10', seconds, memory, copied, largest)

if __name__=='__main__':
    folder = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv)>1 else None))
    try: main(folder)
    finally: shutil.rmtree(folder)
