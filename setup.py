"All settings live in settings.ini; edit there, not here."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages,setup

cfg = ConfigParser(delimiters=['='])
cfg.read('settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
site,raw = cfg['doc_host']+cfg['doc_baseurl'],cfg['git_url'].replace('github.com', 'raw.githubusercontent.com')

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], author_email=cfg['author_email'], license='MIT', license_files=['LICENSE'], url=cfg['git_url'],
    project_urls={'Documentation': site, 'Changelog': f'{site}/changelog.html'},
    long_description=Path('README.md').read_text(encoding='utf-8').replace('](nbs/images/', f"]({raw}/{cfg['branch']}/nbs/images/"),
    long_description_content_type='text/markdown', classifiers=['Programming Language :: Python :: 3'], zip_safe=False,
    packages=find_packages(include=[cfg['lib_name'], f"{cfg['lib_name']}.*"]), package_data={cfg['lib_name']: ['data/**/*']}, include_package_data=False,
    python_requires=f">={cfg['min_python']}", install_requires=cfg['requirements'].split(),
    extras_require={extra: cfg[f'{extra}_requirements'].split() for extra in ('dev', 'gguf', 'api', 'trackers', 'vllm')},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
)
