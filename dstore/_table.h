/* The host cache: dstore.shm.records.Reader and dstore.shm.ring.Writer, in C.

   The theory, and why the steps have this order, is in these two files. What is named alike there
   and here does the same. The memory is written by other processes at the same time: words are
   loaded and stored whole, with acquire and release, and fences keep the copy of a record between
   the loads, and its bytes between the stores. */

#ifndef DSTORE_TABLE_H
#define DSTORE_TABLE_H

#include <Python.h>
#include <stdint.h>
#include <string.h>

#include "_hash.h"

enum {
    DSTORE_INDEX = 512, /* in words: the header has 4,096 bytes */
    DSTORE_WAYS = 8,
    DSTORE_RECORD_SHARE = 4,
    DSTORE_SMALL = 8,
    DSTORE_MAIN = 24,
    DSTORE_TAIL = 0,
    DSTORE_SIZE = 1,
    DSTORE_RESERVED = 2,
    DSTORE_HEAD = 8,
    DSTORE_PUTS = 40,
    DSTORE_EVICTIONS,
    DSTORE_MOVES,
    DSTORE_READMITTED,
    DSTORE_RESETS,
    DSTORE_RECORD_MIN = 6, /* in units */
    DSTORE_MOVES_MAX = 32,
    DSTORE_GHOST_STEPS = 64,
    DSTORE_STAMP_MASK = 0xfff,
    DSTORE_TOKEN = 16,
    DSTORE_ON_STACK = 2048, /* bytes of a record that is copied without asking for memory */
};
#define DSTORE_POSITION_MASK (((uint64_t)1 << 48) - 1)
#define DSTORE_RING_BIT ((uint64_t)1 << 15)
#define DSTORE_TAG_MASK (DSTORE_RING_BIT - 1)
#define DSTORE_FILLER ((uint64_t)1 << 31)
#define DSTORE_LOW ((uint64_t)0xffffffffu)

typedef struct {
    uint64_t hash64, seq;
    uint8_t token[DSTORE_TOKEN];
    uint32_t body;
    uint16_t key;
    uint8_t codec, zero;
} dstore_head;

typedef struct {
    uint8_t *raw;
    uint64_t *words;
    uint8_t *visited; /* by the place of the index word */
    uint32_t *ghost;
    uint64_t sets, slots;
    uint64_t base[2]; /* of the rings, in words */
} dstore_table;

typedef struct {
    uint8_t *data;
    uint64_t units, hash64, place, word;
} dstore_survivor;

typedef struct {
    dstore_table *table;
    PyObject *reserve;
    dstore_survivor queue[DSTORE_MOVES_MAX];
    int first, count; /* of those that were ever queued; at most DSTORE_MOVES_MAX */
    int failed;       /* a Python error is set */
} dstore_put_state;

static inline uint64_t dstore_get(const uint64_t *word) {
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline void dstore_set(uint64_t *word, uint64_t value) {
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static inline void dstore_add(dstore_table *t, int counter) {
    dstore_set(t->words + counter, dstore_get(t->words + counter) + 1);
}

static inline uint64_t dstore_base(const dstore_table *t, int ring) {
    return t->base[ring == DSTORE_MAIN];
}

static inline uint64_t dstore_first(const dstore_table *t, uint64_t hash64) {
    return DSTORE_INDEX + ((hash64 >> 17 & DSTORE_LOW) * t->sets >> 32) * DSTORE_WAYS;
}

static inline uint64_t dstore_index_word(uint64_t position, int ring, uint64_t hash64) {
    return (position & DSTORE_POSITION_MASK) << 16 | (ring == DSTORE_MAIN ? DSTORE_RING_BIT : 0) |
           hash64 >> 49;
}

static inline int dstore_ring(uint64_t word) {
    return word & DSTORE_RING_BIT ? DSTORE_MAIN : DSTORE_SMALL;
}

/* Units from the tail to the record of an index word, at least 0. */
static inline uint64_t dstore_distance(uint64_t word, uint64_t tail) {
    return ((word >> 16) - tail) & DSTORE_POSITION_MASK;
}

static inline int dstore_is_dead(const dstore_table *t, uint64_t word) {
    int ring = dstore_ring(word);
    uint64_t tail = dstore_get(t->words + ring + DSTORE_TAIL);
    return !word || dstore_distance(word, tail) >= dstore_get(t->words + ring + DSTORE_SIZE);
}

/* The bytes of a key: those of the text itself if it is ASCII, else those of ``*owner``. */
static inline int dstore_key_bytes(PyObject *key, const uint8_t **data, Py_ssize_t *length,
                                   PyObject **owner) {
    *owner = NULL;
    if (PyUnicode_IS_COMPACT_ASCII(key)) {
        *data = (const uint8_t *)PyUnicode_DATA(key);
        *length = PyUnicode_GET_LENGTH(key);
        return 0;
    }
    *owner = PyUnicode_AsEncodedString(key, "utf-8", "surrogateescape");
    if (*owner == NULL)
        return -1;
    *data = (const uint8_t *)PyBytes_AS_STRING(*owner);
    *length = PyBytes_GET_SIZE(*owner);
    return 0;
}

/* ---- reading ----------------------------------------------------------------------------- */

/* A named tuple of the type ``type``. This is what tuple.__new__ does for a type derived from it.
   Without a type: the body alone if its codec is "bytes", which needs no decoding, else None. */
static PyObject *dstore_record(PyTypeObject *type, const dstore_head *head, const uint8_t *text) {
    PyObject *items[4], *record = NULL;
    if (type == NULL) {
        if (head->codec == 5 && memcmp(text, "bytes", 5) == 0)
            return PyBytes_FromStringAndSize((const char *)text + 5 + head->key, head->body);
        Py_INCREF(Py_None);
        return Py_None;
    }
    items[0] = PyLong_FromUnsignedLongLong(head->seq);
    items[1] = PyBytes_FromStringAndSize((const char *)head->token, DSTORE_TOKEN);
    items[2] = PyUnicode_DecodeASCII((const char *)text, head->codec, "strict");
    items[3] = PyBytes_FromStringAndSize((const char *)text + head->codec + head->key, head->body);
    if (items[0] && items[1] && items[2] && items[3])
        record = type->tp_alloc(type, 4);
    for (int i = 0; i < 4; i++) {
        if (record != NULL)
            PyTuple_SET_ITEM(record, i, items[i]);
        else
            Py_XDECREF(items[i]);
    }
#if PY_VERSION_HEX >= 0x030E0000
    if (record != NULL)
        ((PyTupleObject *)record)->ob_hash = -1;
#endif
    return record;
}

/* The record that an index word names, if it is that of the key; else NULL, without an error.
   ``seq`` gets its number. */
static PyObject *dstore_open(dstore_table *t, uint64_t place, uint64_t word, const uint8_t *key,
                             Py_ssize_t key_length, uint64_t hash64, PyTypeObject *type,
                             uint64_t *seq) {
    int ring = dstore_ring(word);
    uint64_t tail = dstore_get(t->words + ring + DSTORE_TAIL);
    uint64_t size = dstore_get(t->words + ring + DSTORE_SIZE);
    uint64_t distance = dstore_distance(word, tail);
    if (distance >= size)
        return NULL;
    uint64_t position = tail + distance, start = position % size;
    uint64_t reserved = dstore_get(t->words + ring + DSTORE_RESERVED);
    if (start >= reserved) /* no memory is touched that may not be reserved */
        return NULL;
    const uint64_t *at = t->words + dstore_base(t, ring) + start;
    uint64_t top = dstore_get(at), units = top & DSTORE_LOW;
    if (units < DSTORE_RECORD_MIN || units > reserved - start)
        return NULL;
    size_t length = 8 * (units - 1);
    uint64_t small[DSTORE_ON_STACK / 8];
    uint8_t *data = length <= sizeof small ? (uint8_t *)small : PyMem_Malloc(length);
    if (data == NULL)
        return NULL;
    memcpy(data, at + 1, length);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    PyObject *record = NULL;
    if (dstore_get(t->words + ring + DSTORE_TAIL) <= position) { /* after the copy */
        const dstore_head *head = (const dstore_head *)data;
        const uint8_t *text = data + sizeof *head;
        if (dstore_crc(data, length, (uint32_t)position) == top >> 32 && head->hash64 == hash64 &&
            head->key == key_length &&
            sizeof *head + head->codec + head->key + (size_t)head->body <= length &&
            memcmp(text + head->codec, key, key_length) == 0) {
            uint8_t *visited = t->visited + place;
            if (!__atomic_load_n(visited, __ATOMIC_RELAXED))
                __atomic_store_n(visited, 1, __ATOMIC_RELAXED);
            *seq = head->seq;
            record = dstore_record(type, head, text);
        }
    }
    if (data != (uint8_t *)small)
        PyMem_Free(data);
    return record;
}

static PyObject *dstore_find(dstore_table *t, PyObject *key, uint64_t hash64, PyTypeObject *type,
                             uint64_t *seq) {
    uint64_t first = dstore_first(t, hash64), tag = hash64 >> 49;
    const uint8_t *data = NULL;
    Py_ssize_t length = 0;
    PyObject *owner = NULL, *record = NULL;
    for (uint64_t place = first; place < first + DSTORE_WAYS && record == NULL; place++) {
        uint64_t word = dstore_get(t->words + place);
        if (!word || (word & DSTORE_TAG_MASK) != tag)
            continue;
        if (data == NULL && dstore_key_bytes(key, &data, &length, &owner) < 0)
            return NULL;
        record = dstore_open(t, place, word, data, length, hash64, type, seq);
        if (record == NULL && PyErr_Occurred())
            break;
    }
    Py_XDECREF(owner);
    if (record == NULL && !PyErr_Occurred()) {
        Py_INCREF(Py_None);
        return Py_None;
    }
    return record;
}

/* Two steps before a find of many keys, so that the memory is on its way: the index, the record. */
static inline void dstore_expect_index(const dstore_table *t, uint64_t hash64) {
    __builtin_prefetch(t->words + dstore_first(t, hash64));
}

static inline void dstore_expect_record(const dstore_table *t, uint64_t hash64) {
    uint64_t first = dstore_first(t, hash64), tag = hash64 >> 49;
    for (uint64_t place = first; place < first + DSTORE_WAYS; place++) {
        uint64_t word = dstore_get(t->words + place);
        if (!word || (word & DSTORE_TAG_MASK) != tag)
            continue;
        int ring = dstore_ring(word);
        uint64_t size = dstore_get(t->words + ring + DSTORE_SIZE);
        uint64_t tail = dstore_get(t->words + ring + DSTORE_TAIL);
        uint64_t start = size ? (tail + dstore_distance(word, tail)) % size : 0;
        if (start < dstore_get(t->words + ring + DSTORE_RESERVED)) {
            const uint64_t *at = t->words + dstore_base(t, ring) + start;
            __builtin_prefetch(at);
            __builtin_prefetch(at + 8);
            __builtin_prefetch(at + 16);
        }
        __builtin_prefetch(t->visited + place);
        return;
    }
}

/* ---- writing ----------------------------------------------------------------------------- */

static uint64_t dstore_place_of(const dstore_table *t, uint64_t hash64, uint64_t word) {
    uint64_t first = dstore_first(t, hash64);
    for (uint64_t place = first; place < first + DSTORE_WAYS; place++)
        if (dstore_get(t->words + place) == word)
            return place;
    return 0;
}

static void dstore_publish(dstore_table *t, uint64_t place, uint64_t word) {
    t->visited[place] = 0;
    dstore_set(t->words + place, word);
}

/* What follows word 0 of a record, or NULL if it is damaged. Only the writer may ask. */
static const uint8_t *dstore_data(const dstore_table *t, int ring, uint64_t position,
                                  uint64_t *units) {
    uint64_t size = dstore_get(t->words + ring + DSTORE_SIZE);
    uint64_t start = size ? position % size : 0;
    uint64_t reserved = dstore_get(t->words + ring + DSTORE_RESERVED);
    if (start >= reserved)
        return NULL;
    const uint64_t *at = t->words + dstore_base(t, ring) + start;
    uint64_t top = dstore_get(at);
    *units = top & DSTORE_LOW;
    if (*units < DSTORE_RECORD_MIN || *units > reserved - start)
        return NULL;
    const uint8_t *data = (const uint8_t *)(at + 1);
    return dstore_crc(data, 8 * (*units - 1), (uint32_t)position) == top >> 32 ? data : NULL;
}

static uint64_t dstore_present(const dstore_table *t, const uint8_t *key, Py_ssize_t length,
                               uint64_t hash64, dstore_head *found) {
    uint64_t first = dstore_first(t, hash64), units;
    for (uint64_t place = first; place < first + DSTORE_WAYS; place++) {
        uint64_t word = dstore_get(t->words + place);
        if ((word & DSTORE_TAG_MASK) != hash64 >> 49 || dstore_is_dead(t, word))
            continue;
        int ring = dstore_ring(word);
        uint64_t tail = dstore_get(t->words + ring + DSTORE_TAIL);
        uint64_t position = tail + dstore_distance(word, tail);
        const uint8_t *data = dstore_data(t, ring, position, &units);
        if (data == NULL)
            continue;
        memcpy(found, data, sizeof *found);
        if (found->hash64 == hash64 && found->key == length &&
            sizeof *found + found->codec + found->key <= 8 * (units - 1) &&
            memcmp(data + sizeof *found + found->codec, key, length) == 0)
            return place;
    }
    return 0;
}

static uint64_t dstore_place_for(dstore_table *t, uint64_t hash64) {
    uint64_t first = dstore_first(t, hash64), unread = 0, place;
    for (place = first; place < first + DSTORE_WAYS; place++) {
        if (dstore_is_dead(t, dstore_get(t->words + place)))
            return place;
        if (!t->visited[place])
            unread = place;
    }
    dstore_add(t, DSTORE_EVICTIONS);
    if (unread)
        return unread;
    memset(t->visited + first, 0, DSTORE_WAYS);
    return first + (hash64 & (DSTORE_WAYS - 1));
}

static inline uint32_t dstore_mark(const dstore_table *t, uint64_t hash64, uint64_t *slot) {
    uint64_t step = dstore_get(t->words + DSTORE_MAIN + DSTORE_SIZE) / DSTORE_GHOST_STEPS + 1;
    uint64_t stamp = dstore_get(t->words + DSTORE_SMALL + DSTORE_TAIL) / step;
    *slot = (hash64 >> 17 & DSTORE_LOW) * t->slots >> 32;
    return (uint32_t)((hash64 & 0xfffff) << 12 | (stamp & DSTORE_STAMP_MASK));
}

static int dstore_ring_for(dstore_table *t, uint64_t hash64, uint64_t units, uint64_t former) {
    uint64_t slot;
    uint64_t head = dstore_get(t->words + DSTORE_MAIN + DSTORE_HEAD);
    if (head + units <= dstore_get(t->words + DSTORE_MAIN + DSTORE_SIZE)) /* the first lap */
        return DSTORE_MAIN;
    if (former)
        return dstore_ring(former);
    uint32_t mark = dstore_mark(t, hash64, &slot), noted = t->ghost[slot];
    if (noted >> 12 != mark >> 12 || ((mark - noted) & DSTORE_STAMP_MASK) > DSTORE_GHOST_STEPS)
        return DSTORE_SMALL;
    t->ghost[slot] = 0;
    dstore_add(t, DSTORE_READMITTED);
    return DSTORE_MAIN;
}

static void dstore_reset(dstore_table *t, int ring) {
    uint64_t tail = dstore_get(t->words + ring + DSTORE_TAIL);
    uint64_t head = dstore_get(t->words + ring + DSTORE_HEAD);
    uint64_t position = tail > head ? tail : head;
    dstore_set(t->words + ring + DSTORE_TAIL, position);
    dstore_set(t->words + ring + DSTORE_HEAD, position);
    dstore_add(t, DSTORE_RESETS);
}

static void dstore_leave(dstore_put_state *s, int ring) {
    dstore_table *t = s->table;
    uint64_t tail = dstore_get(t->words + ring + DSTORE_TAIL);
    uint64_t head = dstore_get(t->words + ring + DSTORE_HEAD);
    uint64_t size = dstore_get(t->words + ring + DSTORE_SIZE);
    uint64_t start = size ? tail % size : 0;
    if (start >= dstore_get(t->words + ring + DSTORE_RESERVED)) {
        dstore_reset(t, ring);
        return;
    }
    uint64_t *at = t->words + dstore_base(t, ring) + start;
    uint64_t top = dstore_get(at), units = top & DSTORE_LOW & ~DSTORE_FILLER;
    if (units < (top & DSTORE_FILLER ? 1 : DSTORE_RECORD_MIN) || units > size - start ||
        tail + units > head || head > tail + size) {
        dstore_reset(t, ring);
        return;
    }
    uint64_t *tail_word = t->words + ring + DSTORE_TAIL;
    if (top & DSTORE_FILLER) {
        dstore_set(tail_word, tail + units);
        return;
    }
    uint64_t hash64 = dstore_get(at + 1), word = dstore_index_word(tail, ring, hash64);
    uint64_t slot, checked;
    uint64_t place = dstore_place_of(t, hash64, word);
    if (!place) { /* replaced since, or its place was taken */
        dstore_set(tail_word, tail + units);
        return;
    }
    if (t->visited[place] && s->count < DSTORE_MOVES_MAX) {
        const uint8_t *data = dstore_data(t, ring, tail, &checked);
        uint8_t *copy = data == NULL ? NULL : PyMem_Malloc(8 * (units - 1));
        if (copy != NULL) {
            memcpy(copy, data, 8 * (units - 1));
            dstore_set(tail_word, tail + units);
            s->queue[s->count++] = (dstore_survivor){copy, units, hash64, place, word};
            return;
        }
    }
    dstore_set(tail_word, tail + units);
    if (ring == DSTORE_SMALL) {
        uint32_t mark = dstore_mark(t, hash64, &slot);
        t->ghost[slot] = mark;
    }
    dstore_set(t->words + place, 0);
    dstore_add(t, DSTORE_EVICTIONS);
}

/* The unit to which the memory of the ring is reserved now, or less than ``reserved``: an error. */
static int dstore_reserve(dstore_put_state *s, uint64_t base, uint64_t reserved, uint64_t wanted,
                          uint64_t *end) {
    unsigned long long from = 8 * (base + reserved), to = 8 * (base + wanted);
    PyObject *found = PyObject_CallFunction(s->reserve, "KK", from, to);
    if (found != NULL) {
        *end = PyLong_AsUnsignedLongLong(found) / 8 - base;
        Py_DECREF(found);
    }
    return PyErr_Occurred() ? -1 : 0;
}

/* Whether the size of the ring has changed; -1 with an error. */
static int dstore_grow(dstore_put_state *s, int ring, uint64_t size, uint64_t start, uint64_t units,
                       uint64_t filler) {
    uint64_t *words = s->table->words + ring;
    uint64_t reserved = dstore_get(words + DSTORE_RESERVED), end = 0;
    uint64_t wanted = filler ? size : start + units;
    if (wanted <= reserved)
        return 0;
    if (dstore_reserve(s, dstore_base(s->table, ring), reserved, wanted, &end) < 0)
        return -1;
    end = end < reserved ? reserved : end > size ? size : end;
    dstore_set(words + DSTORE_RESERVED, end);
    if (end >= wanted)
        return 0;
    dstore_set(words + DSTORE_SIZE, end);
    return 1;
}

static uint64_t dstore_append(dstore_put_state *s, int ring, const uint8_t *data, uint64_t units) {
    dstore_table *t = s->table;
    uint64_t base = dstore_base(t, ring), head, size, start, filler, end;
    for (;;) {
        head = dstore_get(t->words + ring + DSTORE_HEAD);
        size = dstore_get(t->words + ring + DSTORE_SIZE);
        if (units > size)
            return 0;
        start = head % size;
        filler = start + units <= size ? 0 : size - start;
        if (dstore_get(t->words + ring + DSTORE_RESERVED) < size) {
            int changed = dstore_grow(s, ring, size, start, units, filler);
            if (changed < 0) {
                s->failed = 1;
                return 0;
            }
            if (changed)
                continue;
        }
        end = head + filler + units;
        if (end - dstore_get(t->words + ring + DSTORE_TAIL) <= size)
            break;
        dstore_leave(s, ring);
    }
    __atomic_thread_fence(__ATOMIC_ACQ_REL); /* the tail is stored before any of the bytes */
    if (filler)
        dstore_set(t->words + base + start, DSTORE_FILLER | filler);
    uint64_t position = head + filler, *at = t->words + base + position % size;
    uint64_t crc = dstore_crc(data, 8 * (units - 1), (uint32_t)position);
    dstore_set(at, crc << 32 | units);
    memcpy(at + 1, data, 8 * (units - 1));
    dstore_set(t->words + ring + DSTORE_HEAD, end);
    return position;
}

static void dstore_move(dstore_put_state *s, const dstore_survivor *record) {
    dstore_table *t = s->table;
    uint64_t position = 0;
    if (dstore_get(t->words + record->place) == record->word)
        position = dstore_append(s, DSTORE_MAIN, record->data, record->units);
    if (!position) {
        dstore_add(t, DSTORE_EVICTIONS);
        return;
    }
    dstore_publish(t, record->place, dstore_index_word(position, DSTORE_MAIN, record->hash64));
    dstore_add(t, DSTORE_MOVES);
}

/* Put a record whose head is complete. Returns whether it is there; -1 with an error. */
static int dstore_put(dstore_table *t, PyObject *reserve, dstore_head *head, const uint8_t *codec,
                      const uint8_t *key, const uint8_t *body) {
    dstore_put_state s = {.table = t, .reserve = reserve};
    dstore_head former;
    size_t length = sizeof *head + head->codec + head->key + (size_t)head->body;
    uint64_t units = 1 + (length + 7) / 8, hash64 = head->hash64;
    if (units > dstore_get(t->words + DSTORE_SMALL + DSTORE_SIZE) / DSTORE_RECORD_SHARE)
        return 0;
    uint64_t place = dstore_present(t, key, head->key, hash64, &former);
    if (place) {
        if (former.seq > head->seq)
            return 0;
        if (former.seq == head->seq && memcmp(former.token, head->token, DSTORE_TOKEN) == 0)
            return 1;
    }
    int ring = dstore_ring_for(t, hash64, units, place ? dstore_get(t->words + place) : 0);
    uint64_t small[DSTORE_ON_STACK / 8];
    uint8_t *data = length + 8 <= sizeof small ? (uint8_t *)small : PyMem_Malloc(length + 8);
    if (data == NULL)
        return 0;
    uint8_t *text = data + sizeof *head;
    memcpy(data, head, sizeof *head);
    memcpy(text, codec, head->codec);
    memcpy(text + head->codec, key, head->key);
    memcpy(text + head->codec + head->key, body, head->body);
    memset(data + length, 0, 8 * (units - 1) - length);
    uint64_t position = dstore_append(&s, ring, data, units);
    if (data != (uint8_t *)small)
        PyMem_Free(data);
    if (position) {
        place = place ? place : dstore_place_for(t, hash64);
        dstore_publish(t, place, dstore_index_word(position, ring, hash64));
        dstore_add(t, DSTORE_PUTS);
    }
    for (; s.first < s.count; s.first++) {
        if (!s.failed)
            dstore_move(&s, s.queue + s.first);
        PyMem_Free(s.queue[s.first].data);
    }
    return s.failed ? -1 : position != 0;
}

#endif
