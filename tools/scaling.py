"""How the time of an iteration grows with the population and with the questions

    python tools/scaling.py smollm2 nq_open runs/scaling_smollm2.json --data_dir DIR
"""
import sys
from argparse import ArgumentParser
import torch
from esma_nb.datasets.registry import load_rows
from esma_nb.engines.models import pick_device,compute_dtype
from esma_nb.core.files import write_json
from esma_nb.bench.baselines import training_baseline

def main(model, dataset, to, data_dir):
    device = pick_device('auto')
    dtype = compute_dtype('auto', device)
    def seconds(members, questions):
        rows = load_rows(dataset, data_dir=data_dir, num_samples=questions)[0]
        found = training_baseline(model, str(device), rows, members, dtype=dtype)(0)['seconds']
        print(members, questions, round(found, 2), flush=True)
        return found
    seconds(2, 16) # To warm up
    write_json(to, dict(command=' '.join(sys.argv), threads=torch.get_num_threads(), dtype=dtype,
        members=[[n, 32, seconds(n, 32)] for n in (4, 8, 16)], questions=[[4, n, seconds(4, n)] for n in (16, 64, 256)]))

if __name__=='__main__':
    p = ArgumentParser()
    for word in ('model', 'dataset', 'to', '--data_dir'): p.add_argument(word)
    main(**vars(p.parse_args()))
