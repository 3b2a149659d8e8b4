"""Questions of which a model knows about half: `python tools/half_known.py RUN OUT.jsonl`, from the records of `esma_nb_eval`"""
import json,sys
from pathlib import Path
from esma_nb.evaluation.records import load_records,record_files
from esma_nb.datasets.rows import sample_rows
from esma_nb.core.files import append_lines,atomic_write

def half_known(records:list, seed='half known')->list: # All that were answered rightly, and as many that were not; a run's own seed would hold out the same ones
    groups = [[dict(question_id=r.question_id, question=r.question, answers=r.answers) for r in records if r.correct is right] for right in (True, False)]
    n = min(map(len, groups))
    return sorted((r for g in groups for r in sample_rows(g, n, seed)), key=lambda r: r['question_id'])

if __name__=='__main__':
    run,out = map(Path, sys.argv[1:])
    rows = half_known([r for p in record_files(run).values() for r in load_records(p)])
    with atomic_write(out) as draft: append_lines(draft, rows)
    print(f'{out}: {len(rows)} questions')
