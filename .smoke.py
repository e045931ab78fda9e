import logging, time, dstore
from unittest import mock
from tests.cluster_storage import FakeDatabase
from tests.integration.processes import RawClient
from dstore.protocol.messages import *
from dstore.protocol.partitions import partition_of
logging.basicConfig(level=logging.INFO)
db = FakeDatabase()
def wait(cond, t=10):
    end=time.monotonic()+t
    while not cond():
        assert time.monotonic()<end
        time.sleep(0.01)
with mock.patch("dstore.server.cluster.member.open_storage", db.open):
    kw = dict(engine="postgresql://x", lease=0.3, ownership_lease=1.0)
    with dstore.Global("tcp://127.0.0.1:0", **kw) as a:
        wait(lambda: len(a._loop._member._serving)==256)
        with dstore.Node(a.address) as node:
            node.set("k", "v"); print(node.get("k"), node.delete("k"))
            node.set_many({f"k{i}": i for i in range(1000)})
            t=time.monotonic()
            with dstore.Global("tcp://127.0.0.1:0", **kw) as b:
                wait(lambda: len(b._loop._member._serving)>0)
                print("b has", len(b._loop._member._serving), "a", len(a._loop._member._serving), time.monotonic()-t)
                mine=[f"k{i}" for i in range(1000) if partition_of(f"k{i}") in a._loop._member._serving]
                print(len(mine), node.get(mine[0]), node.stats()["misses"])
                st=node.global_stats()
                print({k:v for k,v in st.items() if k in("partitions","ownership_left","member","members","map_version","keys")})
                with dstore.Node(b.address) as other:
                    his=[f"k{i}" for i in range(1000) if f"k{i}" not in mine]
                    print(len(other.get_many(his)))
                with RawClient(b.address) as raw:
                    raw.join()
                    print(str(raw.ask(AskMap(raw.epoch, raw.session, 7)))[:300])
                    print(raw.ask(Get(raw.epoch, raw.session, 8, [mine[0]])))
            wait(lambda: len(a._loop._member._serving)==256)
            print(len(node.get_many([f"k{i}" for i in range(1000)])))
    print(db.members, {p.owner for p in db.partitions})
