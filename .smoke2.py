import logging, time, dstore
from unittest import mock
from tests.cluster_storage import FakeDatabase
logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(message)s")
db = FakeDatabase()
import dstore.server.cluster.member as M
orig=M.Member._carry_out
def co(self, service, effects):
    for e in effects: logging.info("%s %s", id(self)%1000, str(e)[:60])
    orig(self, service, effects)
M.Member._carry_out=co
def wait(cond, t=10):
    end=time.monotonic()+t
    while not cond():
        assert time.monotonic()<end
        time.sleep(0.01)
with mock.patch("dstore.server.cluster.member.open_storage", db.open):
    kw = dict(engine="postgresql://x", lease=0.3, ownership_lease=1.0)
    with dstore.Global("tcp://127.0.0.1:0", **kw) as a:
        wait(lambda: len(a._loop._member._serving)==256)
        with dstore.Global("tcp://127.0.0.1:0", **kw) as b:
            wait(lambda: len(b._loop._member._serving)>0)
            logging.info("closing b")
        logging.info("closing a")
    logging.info("closed")
