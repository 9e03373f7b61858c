package throttle

import "time"

const (
	maxKeys    = 1 << 16 // that a limit remembers, in some 3 MB
	candidates = 8       // entries of which a new key replaces one
)

// An entry is the state of one key.
type entry struct {
	failures int
	until    time.Duration // when the next try is allowed
	gone     time.Duration // when the entry is forgotten
}

// A table has at most maxKeys entries. The nil table is empty.
type table map[Key]entry

// get returns the entry of key, and the zero entry if the table has none now.
func (t table) get(key Key, now time.Duration) entry {
	if e := t[key]; e.gone > now {
		return e
	}
	return entry{}
}

// put sets the entry of key. If the table is full, it removes one of a few random
// entries: the one that would be forgotten first. A search of the entire table
// would let each key of a flood cost a scan.
func (t *table) put(key Key, e entry) {
	if *t == nil {
		*t = make(table)
	}
	if _, ok := (*t)[key]; !ok && len(*t) >= maxKeys {
		var first Key
		n := 0
		for k, other := range *t { // in random order
			if n == 0 || other.gone < (*t)[first].gone {
				first = k
			}
			if n++; n == candidates {
				break
			}
		}
		delete(*t, first)
	}
	(*t)[key] = e
}
