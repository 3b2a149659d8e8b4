"How long the exported functions are: median, 95th percentile, the longest; fails over 40 lines, the signatures of commands excepted"
import ast,sys
from pathlib import Path

def functions(path):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for f in ast.walk(tree):
        if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)): yield f'{path.parent.name}.{path.stem}.{f.name}',f

def lines(f): # Of the body, its docstring included, and of the signature where that is no command's
    is_command = any(getattr(d, 'id', None)=='command' for d in f.decorator_list)
    return f.end_lineno - (f.body[0].lineno if is_command else f.lineno) + 1

files = [p for p in sorted(Path('esma_nb').rglob('*.py')) if p.name not in ('_modidx.py', '__init__.py')]
sizes = sorted((lines(f), name) for p in files for name,f in functions(p))
exported = sum(1 for p in files for l in p.read_text(encoding='utf-8').splitlines() if l.strip() and not l.startswith('# '))
at = lambda q: sizes[int(q*(len(sizes)-1))][0]
print(f'{len(sizes)} functions in {len(files)} modules, {exported:,} lines: median {at(.5)}, 95th percentile {at(.95)}, longest {sizes[-1][0]} ({sizes[-1][1]})')
long = [f'{name}: {n} lines' for n,name in sizes if n>40]
print(*long, sep='\n', end='\n' if long else '')
sys.exit(bool(long))
