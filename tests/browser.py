"A real browser for tests, without a driver: Chromium over the pipe of its DevTools"
import json,os,shutil,subprocess
from fcntl import F_DUPFD,fcntl
from pathlib import Path
from tempfile import mkdtemp
import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
FLAGS = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
    '--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-pipe').split()

class Browser:
    "Chromium at the other end of two pipes, and everything it complained about or asked for."
    def __init__(self, tmp, width=1200, dark=False, script=True):
        (theirs,self.to),(self.back,answers) = os.pipe(),os.pipe()
        def wire(): # Descriptors 3 and 4 are the protocol's; move ours out of their way first
            a,b = (fcntl(x, F_DUPFD, 5) for x in (theirs, answers))
            os.dup2(a, 3), os.dup2(b, 4)
        self.process = subprocess.Popen([CHROMIUM, *FLAGS, f'--user-data-dir={mkdtemp(dir=tmp)}'], preexec_fn=wire,
            close_fds=False, stderr=subprocess.DEVNULL)
        os.close(theirs), os.close(answers)
        self.rest,self.n,self.events,self.session = b'',0,[],None
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self.session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'): self.call(f'{domain}.enable')
        self.look(width, dark)
        self.call('Emulation.setScriptExecutionDisabled', value=not script)

    def look(self, width, dark): # As a screen of this width, in this theme
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=844, deviceScaleFactor=1, mobile=width<500)
        self.call('Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value='dark' if dark else 'light')])

    def heard(self): # The next message
        while b'\0' not in self.rest:
            some = os.read(self.back, 1<<20)
            assert some, 'chromium is gone'
            self.rest += some
        message,self.rest = self.rest.split(b'\0', 1)
        return json.loads(message)

    def call(self, method, **params):
        self.n += 1
        message = dict(id=self.n, method=method, params=params) | (dict(sessionId=self.session) if self.session else {})
        os.write(self.to, json.dumps(message).encode()+b'\0')
        while (m := self.heard()).get('id')!=self.n: self.events.append(m)
        assert 'error' not in m, m
        return m['result']

    def open(self, where): # A file, or an address
        self.events.clear()
        self.call('Page.navigate', url=where if '://' in str(where) else Path(where).as_uri())
        while not any(e.get('method')=='Page.loadEventFired' for e in self.events): self.events.append(self.heard())
        return self

    def js(self, text): return self.call('Runtime.evaluate', expression=text, returnByValue=True, awaitPromise=True)['result'].get('value')

    def wait(self, milliseconds): self.js(f'new Promise(done => setTimeout(done, {milliseconds}))') # By the page's own clock: earlier timers of the page come first

    def seen(self, *methods): return [e['params'] for e in self.events if e.get('method') in methods]

    def close(self):
        os.close(self.to)
        try: self.process.wait(10)
        except subprocess.TimeoutExpired: self.process.kill(); self.process.wait()
        os.close(self.back)

@pytest.fixture
def browse(tmp_path):
    if not CHROMIUM: pytest.skip('no chromium on this machine')
    opened = []
    def browse(path, width=1200, **how):
        opened.append(Browser(tmp_path, width, **how))
        return opened[-1].open(path)
    yield browse
    for b in opened: b.close()
