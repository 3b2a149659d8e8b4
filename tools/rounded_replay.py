"""The steps of a run once more, in bfloat16 throughout as the public code takes them: `python tools/rounded_replay.py RUN MODEL_OUT FACTS.json`

Every visit is added and subtracted, and every member's part of the step is added by itself, in weights that are bfloat16. FACTS says how many numbers moved
at all, how far, which way, and how much of the way the largest changes hold; for the run as it was, rounded once at its end, and for this one.
"""
import sys
from pathlib import Path
import torch
from tqdm import tqdm
from esma_nb.evolution.checkpoint import save_checkpoint
from esma_nb.evolution.noise import direction,parallel_map
from esma_nb.patching.replay import at_iteration
from esma_nb.core.files import read_lines,write_json

def stepped(weights:dict, journal:list)->dict: # In bfloat16, by name
    "Where `weights` go along `journal` if every sum is rounded."
    def go(name):
        w = weights[name].bfloat16()
        for line in journal:
            members = [(tuple(key), sign) for key,sign in line['members']]
            noise = {key: direction(key, name, w.shape) for key in dict(members)}
            for key,sign in members:
                visit = (sign*line['sigma']*noise[key]).bfloat16()
                w.add_(visit).sub_(visit)
            for (key,sign),c in zip(members, line['coefficients']): w.add_((sign*c*noise[key]).bfloat16())
            bar.update(w.numel()/1e6)
        return w
    with tqdm(total=len(journal)*sum(w.numel() for w in weights.values())/1e6, unit='million') as bar:
        names = sorted(weights, key=lambda n: -weights[n].numel())
        return dict(zip(names, parallel_map(go, names)))

def facts(start:dict, end:dict, exact:dict)->dict:
    "What became of `start`; `exact` is where it should have gone."
    moved = torch.cat([(end[n].double()-start[n].bfloat16().double()).flatten() for n in start])
    way = torch.cat([(exact[n].double()-start[n]).flatten() for n in start])
    size = moved.abs().sort(descending=True).values.square().cumsum(0)
    return dict(changed=(moved!=0).double().mean().item(), length=moved.norm().item(), cosine=(moved@way/moved.norm()/way.norm()).item(),
        held_by_top={p: (size[len(size)*p//100]/size[-1]).item() for p in (1, 10, 50, 90, 99)})

def main(run, to, out):
    journal = read_lines(Path(run)/'journal.jsonl')
    model,tokenizer,base,_ = at_iteration(Path(run), 0)
    start = {n: w.clone() for n,w in base.weights.items()}
    exact = at_iteration(Path(run))[2].weights
    end = stepped(start, journal)
    write_json(out, dict(command=' '.join(['python tools/rounded_replay.py', *sys.argv[1:]]), iterations=len(journal),
        exact=facts(start, {n: w.bfloat16() for n,w in exact.items()}, exact), rounded=facts(start, end, exact)))
    for n,w in base.weights.items(): w.copy_(end[n])
    save_checkpoint(to, model, tokenizer, base, len(journal))

if __name__=='__main__': main(*sys.argv[1:])
