# cython: language_level=3, auto_pickle=False, annotation_typing=False
# cython: freethreading_compatible=True
"""What a hit needs, compiled.

These are the classes of :mod:`dstore.core.local.membership` and :mod:`dstore.client.hits`, and at
the end those of :mod:`dstore.core.local.key_hash`, :mod:`dstore.shm.records` and :mod:`dstore.shm.ring`,
with the same attributes. :mod:`dstore.compiled` says when they take the place of the pure ones.

With the GIL nothing else runs between the loads of a hit, except within the look-up if a key has
methods in Python. So plain loads do, and what is used after the look-up is held by a reference.
Without the GIL (``Py_GIL_DISABLED``) another thread may replace an object between the load of a
pointer to it and the count of the reference. ``PyMember_GetOne`` and ``PyDict_GetItemRef`` do both
in one step, and take a lock only if they meet such a writer. What is set once, by ``__cinit__``,
needs no such care.

The words and the end of a lease are loaded with acquire, and the end is stored with release, since
other processors, and other processes, write them: nothing that a hit reads after a word is older
than the word. On x86-64 these are plain instructions.
"""

from hashlib import blake2b
from zlib import crc32

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_XDECREF
from cpython.memoryview cimport PyMemoryView_GET_BUFFER
from libc.math cimport round
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from dstore.protocol.messages import NO_SESSION, Stored
from dstore.runtime import clock

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <time.h>
    #ifdef Py_GIL_DISABLED
    #include <structmember.h>
    #endif

    /* The clock of dstore.runtime.clock in nanoseconds. One that cannot be read is after the end of
       every lease. */
    static inline uint64_t dstore_now(void) {
        struct timespec time;
    #if defined(CLOCK_BOOTTIME)
        int failed = clock_gettime(CLOCK_BOOTTIME, &time);
    #elif defined(__APPLE__)
        int failed = clock_gettime(CLOCK_UPTIME_RAW, &time);
    #else
        int failed = clock_gettime(CLOCK_MONOTONIC, &time);
    #endif
        if (failed)
            return UINT64_MAX;
        return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
    }

    static inline uint64_t dstore_load_word(const uint64_t *word) {
        return __atomic_load_n(word, __ATOMIC_ACQUIRE);
    }

    static inline void dstore_store_word(uint64_t *word, uint64_t value) {
        __atomic_store_n(word, value, __ATOMIC_RELEASE);
    }

    /* These two may lose to another thread; what they write only guides the eviction and counts. */
    static inline void dstore_visit(unsigned char *visited) {
        __atomic_store_n(visited, 1, __ATOMIC_RELAXED);
    }

    static inline void dstore_count(uint64_t *counter) {
        uint64_t count = __atomic_load_n(counter, __ATOMIC_RELAXED);
        __atomic_store_n(counter, count + 1, __ATOMIC_RELAXED);
    }

    /* A new reference to what a field of an object names, and the other way round. */
    #ifdef Py_GIL_DISABLED
    static inline PyMemberDef dstore_member(PyObject *owner, PyObject **field) {
        PyMemberDef member = {"", Py_T_OBJECT_EX, (char *)field - (char *)owner, 0, NULL};
        return member;
    }
    static inline PyObject *dstore_load(PyObject *owner, PyObject **field) {
        PyMemberDef member = dstore_member(owner, field);
        return PyMember_GetOne((const char *)owner, &member);
    }
    static inline int dstore_store(PyObject *owner, PyObject **field, PyObject *value) {
        PyMemberDef member = dstore_member(owner, field);
        return PyMember_SetOne((char *)owner, &member, value);
    }
    #else
    static inline PyObject *dstore_load(PyObject *owner, PyObject **field) {
        (void)owner;
        Py_INCREF(*field);
        return *field;
    }
    static inline int dstore_store(PyObject *owner, PyObject **field, PyObject *value) {
        PyObject *old = *field;
        (void)owner;
        Py_INCREF(value);
        *field = value;
        Py_DECREF(old);
        return 0;
    }
    #endif
    #define DSTORE_LOAD(owner, field) \\
        dstore_load((PyObject *)(owner), (PyObject **)&(owner)->field)
    #define DSTORE_STORE(owner, field, value) \\
        dstore_store((PyObject *)(owner), (PyObject **)&(owner)->field, (PyObject *)(value))
    #define DSTORE_MEMBERSHIP(state) DSTORE_LOAD(state, _membership)
    #define DSTORE_SET_MEMBERSHIP(state, value) DSTORE_STORE(state, _membership, value)
    #define DSTORE_STATE(node) DSTORE_LOAD(node, _present)
    #define DSTORE_SET_STATE(node, value) DSTORE_STORE(node, _present, value)
    #define DSTORE_INDEX(node) DSTORE_LOAD(node, _entries)
    #define DSTORE_SET_INDEX(node, value) DSTORE_STORE(node, _entries, value)
    #define DSTORE_HOME(entry) DSTORE_LOAD(entry, _home)
    #define DSTORE_SET_HOME(entry, value) DSTORE_STORE(entry, _home, value)
    /* The membership is held, so that no other one has its address. */
    #define DSTORE_IS_HOME(entry, membership) \\
        ((PyObject *)__atomic_load_n(&(entry)->_home, __ATOMIC_ACQUIRE) == \\
         (PyObject *)(membership))

    /* A new reference to the value of a key of a dictionary, or to None. */
    static inline PyObject *dstore_look_up(PyObject *entries, PyObject *key) {
        PyObject *found;
    #if PY_VERSION_HEX >= 0x030D0000
        int state = PyDict_GetItemRef(entries, key, &found);
        if (state > 0)
            return found;
        if (state < 0)
            return NULL;
        found = Py_None;
    #else
        found = PyDict_GetItemWithError(entries, key);
        if (found == NULL) {
            if (PyErr_Occurred())
                return NULL;
            found = Py_None;
        }
    #endif
        Py_INCREF(found);
        return found;
    }
    """
    uint64_t now "dstore_now" ()
    uint64_t load_word "dstore_load_word" (const uint64_t *)
    void store_word "dstore_store_word" (uint64_t *, uint64_t)
    void visit "dstore_visit" (unsigned char *)
    void count "dstore_count" (uint64_t *)
    Membership load_membership "DSTORE_MEMBERSHIP" (Present)
    int store_membership "DSTORE_SET_MEMBERSHIP" (Present, Membership) except -1
    Present load_state "DSTORE_STATE" (Hits)
    int store_state "DSTORE_SET_STATE" (Hits, Present) except -1
    dict load_index "DSTORE_INDEX" (Hits)
    int store_index "DSTORE_SET_INDEX" (Hits, dict) except -1
    Membership load_home "DSTORE_HOME" (Entry)
    int store_home "DSTORE_SET_HOME" (Entry, Membership) except -1
    bint is_home "DSTORE_IS_HOME" (Entry, Membership)
    object look_up "dstore_look_up" (dict, object)
    void prefetch "__builtin_prefetch" (void *)

# As in dstore.core.local.shared; a test compares them.
cdef enum:
    SEEN_HEAD = 2
    SEEN_FIRST = 2
    SEEN_LAST = 65535
    SEEN_SLOTS = 65536
    SEEN_AGE = 12288

RAISE = object()
cdef object _Stored = Stored
cdef double NS = 1e9
cdef uint64_t LEASE_MAX = <uint64_t> -1


cdef uint64_t lease_word(double end):
    """The end of a lease, given in seconds, in nanoseconds; 0 stands for a lapsed one."""
    if not end > 0:
        return 0
    return LEASE_MAX if end * NS >= <double> LEASE_MAX else <uint64_t> round(end * NS)



cdef class Membership


@cython.trashcan(True)
cdef class Entry:
    """One cached value: :class:`dstore.core.local.membership.Entry`, compiled."""

    # What a hit reads is first: with luck, it is in one line of the processor's cache.
    cdef readonly object value
    cdef public unsigned int bucket
    cdef public unsigned char visited
    cdef public unsigned char sound
    cdef public uint64_t seq
    cdef Membership _home
    cdef readonly object key
    cdef public bytes shared
    cdef public Entry newer
    cdef public Entry older
    cdef public uint64_t since
    cdef public Py_ssize_t size

    def __cinit__(
        self,
        key,
        value,
        uint64_t seq,
        Py_ssize_t size,
        bytes shared=None,
        unsigned int bucket=0,
    ):
        self.key = key
        self.value = value
        self.seq = self.since = seq
        self.size = size
        self.shared = shared
        self.bucket = bucket

    @property
    def home(self):
        return load_home(self)

    @home.setter
    def home(self, Membership home):
        store_home(self, home)

    def __repr__(self):
        return f"<Entry {self.key!r} seq={self.seq} visited={self.visited}>"


cdef _checked(words):
    """Return a view of words that hits may read without a lock; None if there are none."""
    if words is None:
        return None
    view = memoryview(words)
    if view.format != "Q" or view.ndim != 1 or not view.c_contiguous or not len(view):
        raise ValueError("the words must be a memoryview of the format Q, and not empty")
    if <size_t> PyMemoryView_GET_BUFFER(view).buf % sizeof(uint64_t):
        raise ValueError("the words must be aligned")
    return view


@cython.no_gc_clear  # what is set once is never taken away; the dictionary can break a cycle
cdef class Membership:
    """The Local's side of one session: :class:`dstore.core.local.membership.Membership`, compiled.

    ``entries``, ``words`` and ``lease`` are given to the constructor and stay.
    """

    cdef readonly dict entries
    cdef readonly object words
    cdef public uint64_t epoch
    cdef public uint64_t session
    cdef public uint64_t applied
    cdef object _views  # of our own, so that no other code releases them: the words stay in place
    cdef uint64_t _own_lease
    cdef uint64_t *_lease
    cdef bint _is_owner
    cdef const uint64_t *_words
    cdef Py_ssize_t _length

    def __cinit__(self, dict entries not None, words=None, lease=None):
        self.entries = entries
        self.words = words
        self.session = NO_SESSION
        self._lease = &self._own_lease
        self._is_owner = True
        self._views = (_checked(words), _checked(lease))
        if words is not None:
            self._words = <const uint64_t *> PyMemoryView_GET_BUFFER(self._views[0]).buf
            self._length = len(words)
        if lease is not None:
            self._lease = <uint64_t *> PyMemoryView_GET_BUFFER(self._views[1]).buf
            self._is_owner = not lease.readonly

    @property
    def lease_end(self):
        """The end of the lease in seconds of the clock; 0 if there is none."""
        return load_word(self._lease) / NS

    @lease_end.setter
    def lease_end(self, double seconds):
        if not self._is_owner:
            raise TypeError("only the owner of a membership changes its lease")
        store_word(self._lease, lease_word(seconds))

    def __repr__(self):
        return (
            f"<Membership epoch={self.epoch:x} joined={self.session != 0} applied={self.applied} "
            f"lease_end={self.lease_end:.3f} entries={len(self.entries)}>"
        )


cdef class Present:
    """The base of a state: :class:`dstore.core.local.membership.Present`, compiled."""

    cdef Membership _membership

    def __init__(self, Membership membership not None):
        store_membership(self, membership)

    @property
    def membership(self):
        return load_membership(self)

    @membership.setter
    def membership(self, Membership membership not None):
        store_membership(self, membership)


cdef class Hits:
    """The base of a Node: :class:`dstore.client.hits.Hits`, compiled."""

    cdef Present _present
    cdef dict _entries
    cdef public uint64_t _hits

    @property
    def _state(self):
        return load_state(self)

    @_state.setter
    def _state(self, Present state not None):
        store_state(self, state)

    @property
    def _index(self):
        return load_index(self)

    @_index.setter
    def _index(self, dict index):
        store_index(self, index)

    def get(self, key: str | bytes, default: Any = RAISE) -> Any:
        """Return the value of ``key``, from the cache if it is there, else from Global.

        An array is returned read-only, over memory that the processes of this host share. Bytes
        of more than 1 MiB are returned as a read-only memoryview over such memory. Raises
        KeyMissing if the key has no value and no ``default`` is given.
        """
        cdef Entry entry
        cdef dict index
        if type(key) is not str:  # only for str itself are hash and equality those of the key
            return self._get_named(key, default)
        index = load_index(self)
        entry = _find(load_state(self), key) if index is None else _find_indexed(index, key)
        if entry is None:  # not cached, or a text that is not the one text of its key
            return self._get_missed(key, default)
        count(&self._hits)
        value = entry.value
        return value if type(value) is not _Stored else self._opened(entry)

    def _hit(self, name):
        """Return the entry of a key's text that is cached under a valid lease, and count a hit."""
        cdef Entry entry
        cdef dict index = load_index(self)
        entry = _find(load_state(self), name) if index is None else _find_indexed(index, name)
        if entry is not None:
            count(&self._hits)
        return entry

    def _get_named(self, key, default):
        """Return what ``get`` returns, for a key that is not of the type ``str`` itself."""
        raise NotImplementedError

    def _get_missed(self, key, default):
        """Return what ``get`` returns, for a key that is no hit."""
        raise NotImplementedError

    def _opened(self, entry):
        """Return the value of an entry that has the encoded one."""
        raise NotImplementedError


def find(Present state not None, name, dict index=None):
    """Return the entry of a key's text that is cached under a valid lease. Takes no lock."""
    return _find(state, name) if index is None else _find_indexed(index, name)


# The order matters, here and below: see dstore.client.hits.pure_find.
cdef inline Entry _find_indexed(dict index, object name):
    cdef Membership membership
    cdef Entry entry = look_up(index, name)
    cdef uint64_t lease_end
    if entry is None:
        return None
    membership = load_home(entry)
    if membership is None:
        return None
    lease_end = load_word(membership._lease)
    if not is_home(entry, membership):
        return None
    return entry if _is_valid(membership, entry, lease_end) else None


cdef inline Entry _find(Present state, object name):
    cdef Membership membership
    cdef Entry entry
    cdef uint64_t lease_end
    if state is None:
        raise AttributeError("the state is not set")
    membership = load_membership(state)
    if membership is None:
        raise AttributeError("the membership is not set")
    lease_end = load_word(membership._lease)
    entry = look_up(membership.entries, name)
    if entry is None:
        return None
    return entry if _is_valid(membership, entry, lease_end) else None


cdef inline bint _is_valid(Membership membership, Entry entry, uint64_t lease_end) except -1:
    """Whether an entry that was found after the end of the lease was noted may be used."""
    prefetch(<void *> entry.value)  # it arrives while the clock is read, which waits for loads
    if membership._words is not NULL:
        if entry.bucket >= membership._length:
            raise IndexError("the bucket of the entry is beyond the words")
        if load_word(membership._words + entry.bucket) > entry.seq:
            return False
    if now() >= lease_end:
        return False
    visit(&entry.visited)
    return True


# ---- the host cache ---------------------------------------------------------------------------

cdef extern from "_hash.h":
    ctypedef struct dstore_hash:
        pass
    void dstore_hash_begin(dstore_hash *, const uint8_t *)
    uint64_t dstore_hash_of(const dstore_hash *, const uint8_t *, size_t)
    void dstore_crc_begin()
    uint32_t dstore_crc(const uint8_t *, size_t, uint32_t)

cdef extern from "_table.h":
    ctypedef struct dstore_head:
        uint64_t hash64
        uint64_t seq
        uint8_t token[16]
        uint32_t body
        unsigned short key
        uint8_t codec
        uint8_t zero
    ctypedef struct dstore_table:
        uint8_t *raw
        uint64_t *words
        uint8_t *visited
        uint32_t *ghost
        uint64_t sets
        uint64_t slots
        uint64_t base[2]
    int dstore_key_bytes(object, const uint8_t **, Py_ssize_t *, PyObject **) except -1
    object dstore_find(dstore_table *, object, uint64_t, PyTypeObject *, uint64_t *)
    void dstore_expect_index(const dstore_table *, uint64_t)
    void dstore_expect_record(const dstore_table *, uint64_t)
    int dstore_put(
        dstore_table *, object, dstore_head *, const uint8_t *, const uint8_t *, const uint8_t *
    ) except -1


cdef class KeyHash:
    """Hashes keys: :class:`dstore.core.local.key_hash.KeyHash`, compiled."""

    cdef dstore_hash _hash

    def __cinit__(self, bytes hash_key not None):
        if len(hash_key) != 16:
            raise ValueError(f"the key of the hash has 16 bytes, not {len(hash_key)}")
        dstore_hash_begin(&self._hash, <const uint8_t *> <char *> hash_key)

    def __call__(self, str key not None):
        cdef const uint8_t *data
        cdef Py_ssize_t length
        cdef PyObject *owner
        dstore_key_bytes(key, &data, &length, &owner)
        cdef uint64_t found = dstore_hash_of(&self._hash, data, length)
        Py_XDECREF(owner)
        return found


cdef class _Memory:
    """The memory of a table, as long as this object lives."""

    cdef dstore_table _table
    cdef object _view  # of our own, so that no other code releases it

    def __cinit__(self, memory, layout, _):
        view = memoryview(memory)
        if view.ndim != 1 or view.itemsize != 1 or view.readonly or len(view) < layout.total:
            raise ValueError(f"a table needs {layout.total} writable bytes")
        self._view = view
        cdef dstore_table *table = &self._table
        table.raw = <uint8_t *> PyMemoryView_GET_BUFFER(view).buf
        if <size_t> table.raw % sizeof(uint64_t):
            raise ValueError("the memory of a table must be aligned")
        table.words = <uint64_t *> table.raw
        table.visited = table.raw + <size_t> layout.visited - 512
        table.ghost = <uint32_t *> (table.raw + <size_t> layout.ghost)
        table.sets = layout.index_words // 8
        table.slots = layout.index_words
        table.base[0] = layout.small // 8
        table.base[1] = layout.main // 8


cdef class Reader(_Memory):
    """Looks keys up: :class:`dstore.shm.records.Reader`, compiled."""

    cdef object _record

    def __init__(self, memory, layout, record):
        if not issubclass(record, tuple) or record.__itemsize__ != tuple.__itemsize__:
            raise TypeError("records are named tuples")
        self._record = record

    def find(self, str key not None, uint64_t hash64):
        """Return the record of a key, whose hash is ``hash64``, and mark it visited."""
        cdef uint64_t seq
        return dstore_find(&self._table, key, hash64, <PyTypeObject *> self._record, &seq)


cdef int _seen_again(uint16_t[::1] slots, uint64_t hashed) except -1:
    """Do what :func:`dstore.core.local.shared.seen_again` does."""
    cdef Py_ssize_t place
    cdef uint16_t age = slots[0]
    cdef uint16_t found
    place = SEEN_HEAD + <Py_ssize_t> ((hashed >> 16) % SEEN_SLOTS)
    if slots.shape[0] != SEEN_HEAD + SEEN_SLOTS:
        raise ValueError("these are not the slots of Seen")
    found = slots[place]
    if found == age:
        return True
    slots[place] = age
    if found == age - 1:
        return True
    slots[1] += 1
    if slots[1] == SEEN_AGE:
        if age == SEEN_LAST:
            age = SEEN_FIRST
            slots[SEEN_HEAD:] = 0
        slots[0], slots[1] = age + 1, 0
    return False


cdef class HostReader:
    """Reads the host cache: :class:`dstore.client.host_reader.HostReader`, compiled."""

    cdef dstore_hash _hash
    cdef Reader _reader

    def __cinit__(self, bytes hash_key not None, Reader reader not None):
        dstore_hash_begin(&self._hash, <const uint8_t *> <char *> hash_key)
        self._reader = reader

    cdef int _hashed(self, str key, uint64_t *hashed) except -1:
        cdef const uint8_t *data
        cdef Py_ssize_t length
        cdef PyObject *owner
        dstore_key_bytes(key, &data, &length, &owner)
        hashed[0] = dstore_hash_of(&self._hash, data, length)
        Py_XDECREF(owner)
        return 0

    cdef inline object _find(self, str key, uint64_t hashed, PyTypeObject *kind, uint64_t *seq):
        return dstore_find(&self._reader._table, key, hashed, kind, seq)

    def read(self, Membership membership not None, str key not None):
        """Return the hash of a key and its record, or None. Raises UnicodeEncodeError."""
        cdef uint64_t hashed
        cdef uint64_t seq
        cdef uint64_t lease_end = load_word(membership._lease)
        if membership._words is NULL:
            return None
        self._hashed(key, &hashed)
        record = self._find(key, hashed, <PyTypeObject *> self._reader._record, &seq)
        if record is None or load_word(membership._words + hashed % membership._length) > seq:
            return None
        return None if now() >= lease_end else (hashed, record)

    def collect(
        self, Membership membership not None, list keys not None, dict found not None, seen not None
    ):
        """Put into ``found`` what is in the cache or the host cache. Returns rest, again, read."""
        cdef uint64_t lease_end = load_word(membership._lease)
        cdef list rest = []
        cdef list again = []
        cdef list asked = []
        cdef Entry entry
        cdef uint64_t *hashes
        cdef uint64_t seq
        cdef uint64_t hashed
        cdef Py_ssize_t count = 0
        cdef Py_ssize_t index
        cdef Py_ssize_t read = 0
        cdef uint16_t[::1] slots = seen
        if membership._words is NULL:
            return list(keys), again, 0
        hashes = <uint64_t *> PyMem_Malloc((len(keys) + 1) * sizeof(uint64_t))
        if hashes is NULL:
            raise MemoryError
        try:
            for key in keys:
                entry = look_up(membership.entries, key)
                if entry is not None and entry.bucket < membership._length and (
                    load_word(membership._words + entry.bucket) <= entry.seq
                ):
                    value = entry.value
                    if type(value) is not _Stored:
                        visit(&entry.visited)
                        found[key] = value
                    else:
                        rest.append(key)
                    continue
                try:
                    self._hashed(key, hashes + count)
                except UnicodeEncodeError:  # it is no key
                    rest.append(key)
                    continue
                dstore_expect_index(&self._reader._table, hashes[count])
                prefetch(<void *> (membership._words + hashes[count] % membership._length))
                asked.append(key)
                count += 1
            for index in range(count):
                dstore_expect_record(&self._reader._table, hashes[index])
            for index in range(count):
                key, hashed = asked[index], hashes[index]
                value = self._find(key, hashed, NULL, &seq)
                if value is None or load_word(
                    membership._words + hashed % membership._length
                ) > seq:
                    rest.append(key)
                    continue
                found[key] = value
                read += 1
                if _seen_again(slots, hashed):
                    record = self._find(key, hashed, <PyTypeObject *> self._reader._record, &seq)
                    if record is not None:
                        again.append((key, hashed, record))
        finally:
            PyMem_Free(hashes)
        if now() >= lease_end:
            found.clear()
            return list(keys), [], 0
        return rest, again, read


cdef class Writer(_Memory):
    """Puts records: :class:`dstore.shm.ring.Writer`, compiled."""

    cdef object _reserve

    def __init__(self, memory, layout, reserve):
        self._reserve = reserve

    def put(
        self, str key not None, uint64_t hash64, seq, bytes token not None, str codec not None,
        bytes body not None,
    ):
        """Write a record. False if there is a newer one of its key, or it is too large."""
        cdef dstore_head head
        cdef const uint8_t *data
        cdef const uint8_t *name
        cdef Py_ssize_t length
        cdef Py_ssize_t name_length
        cdef PyObject *owner
        cdef PyObject *name_owner
        if len(token) != 16 or not 0 <= seq <= 0xFFFFFFFFFFFFFFFF or len(body) > 0xFFFFFFFF:
            return False
        dstore_key_bytes(codec, &name, &name_length, &name_owner)
        try:
            dstore_key_bytes(key, &data, &length, &owner)
            try:
                if name_owner is not NULL or name_length > 255 or length > 65535:
                    return False
                head.hash64, head.seq, head.zero = hash64, seq, 0
                head.body, head.key, head.codec = len(body), length, name_length
                memcpy(head.token, <char *> token, 16)
                return dstore_put(
                    &self._table, self._reserve, &head, name, data, <const uint8_t *> <char *> body
                ) != 0
            finally:
                Py_XDECREF(owner)
        finally:
            Py_XDECREF(name_owner)


def _check_hashes():
    """Compare the hash and the CRC with those of Python, for each length of a block and beyond."""
    key = bytes(range(16))
    hashed = KeyHash(key)
    for length in (0, 1, 8, 127, 128, 129, 255, 256, 257, 511):
        text = "".join([chr(97 + each % 26) for each in range(length)])
        raw = text.encode()
        expected = int.from_bytes(blake2b(raw, digest_size=8, key=key).digest(), "little")
        if hashed(text) != expected:
            raise ImportError(f"its hash of {length} bytes is not that of hashlib")
        if dstore_crc(<const uint8_t *> <char *> raw, length, length) != crc32(raw, length):
            raise ImportError(f"its CRC of {length} bytes is not that of zlib")


def _check_clock():
    before, here, after = clock.now_ns(), now(), clock.now_ns()
    if not before <= here <= after:  # leases end on the clock of Python
        raise ImportError(f"its clock reads {here}, that of Python {before} to {after}")


_check_clock()
dstore_crc_begin()
_check_hashes()
