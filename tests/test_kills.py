"A short campaign of kills; `python tests/kills.py --kills 60` is the long one."
import os
import pytest
from kills import N,chain,restarted,table,undisturbed

@pytest.fixture(scope='module')
def reference(tmp_path_factory):
    facts,span = undisturbed(tmp_path_factory.mktemp('reference')/'run')
    assert facts['metrics']==[*range(1, N+1)] and len(facts['journal'])==N
    return span,facts

def order(name, n, **kw): return dict(what=name, name=name, n=n, who='self', rank=None, delay=0) | kw

def check(orders, kills): # All of them struck, and it was as if nothing had happened
    assert [k['what'] for k in kills]==[o['what'] for o in orders]
    assert all(k['resumed'] and k['equal'] and not k['lost'] and not k['wrong'] for k in kills), table(kills) + ''.join(f"\n{k['what']}: {w}" for k in kills for w in k['wrong'])

def test_one_process_at_its_worst_moments(reference, tmp_path):
    "Each start but the last dies: while questions are asked, with half a line written, at a checkpoint that has its manifest and not its name, while the master moves, while an old checkpoint is removed."
    orders = [order('measuring', 1, delay=.05), order('torn', 1), order('sealed', 1), order('update', 2), order('pruning', 1)]
    check(orders, chain(tmp_path, 0, orders, 1, *reference))

@pytest.mark.skipif(not os.environ.get('ESMA_NB_SLOW'), reason='ESMA_NB_SLOW=1 runs the slow ones')
def test_two_processes(reference, tmp_path):
    "First one of them dies, then both."
    orders = [order('update', 2, rank=1, what='one of two'), order('journal', 1, rank=0, who='both', what='both of two')]
    check(orders, chain(tmp_path, 0, orders, 2, *reference))

@pytest.mark.skipif(not os.environ.get('ESMA_NB_SLOW'), reason='ESMA_NB_SLOW=1 runs the slow ones')
def test_torchrun_starts_them_again(reference, tmp_path):
    assert restarted(tmp_path/'run', reference[1])==[]
