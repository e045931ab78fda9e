exec(open('.smoke2.py').read().split("with mock")[0])
o2=M.Member._go_on_handing_over
def g(self, service):
    if self._handing_over: logging.info("writing %s idle %s pend %s bc %s ch %s loads %s ans %s", service.state.writing, service.state.idle, len(service.state._invalidations.pending), len(service.state._invalidations.broadcasts), len(service.state._changes), service.state._loads, service.state._waits.answerable())
    o2(self, service)
M.Member._go_on_handing_over=g
with mock.patch("dstore.server.cluster.member.open_storage", db.open):
    kw = dict(engine="postgresql://x", lease=0.2, ownership_lease=.6)
    with dstore.Global("tcp://127.0.0.1:0", **kw) as a:
        wait(lambda: len(a._loop._member._serving)==256)
        with dstore.Global("tcp://127.0.0.1:0", **kw) as b:
            wait(lambda: len(b._loop._member._serving)>0)
            logging.info("closing a")
            a.close()
            wait(lambda: len(b._loop._member._serving)==256)
            logging.info("closing b")
        logging.info("closed b")
    logging.info("closed")
