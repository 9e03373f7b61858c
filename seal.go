package main

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"log/slog"
	"time"
)

// A sealKey seals events: who has not got it cannot change what is sealed so
// that it still verifies.
type sealKey struct {
	id     string // tells keys apart, and nothing of the key
	secret []byte
}

func newSealKey(secret []byte) sealKey {
	k := sealKey{secret: secret}
	k.id = hex.EncodeToString(k.mac("name")[:4])
	return k
}

// mac returns HMAC-SHA-256 of its parts, each of a fixed length for a use.
func (k sealKey) mac(use string, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, k.secret)
	h.Write([]byte(use)) // of four letters
	for _, part := range parts {
		h.Write(part)
	}
	return h.Sum(nil)
}

// seal returns the seal of the events up to an id whose digest is given, after
// the seal with the MAC prev.
func (k sealKey) seal(prev []byte, upTo int64, digest []byte) seal {
	first := sha256.Sum256(prev) // as long for the first seal, before which there is none
	return seal{eventID: upTo, keyID: k.id, mac: k.mac("seal", first[:], number(upTo), digest)}
}

// anchor returns the proof that all events up to a seal were to be trimmed.
// Without it, whoever can delete rows could also pretend that they were trimmed.
func (k sealKey) anchor(x seal) []byte {
	return k.mac("trim", number(x.eventID), x.mac)
}

func number(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

// A digest is the SHA-256 of events, in which no two lists of events are the same bytes.
type digest struct{ hash.Hash }

func newDigest() digest { return digest{sha256.New()} }

func (d digest) add(e *event) {
	b := make([]byte, 0, 256)
	for _, n := range []int64{e.id, e.at, e.actorID, e.userID, e.sessionID} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	for _, text := range []string{string(e.kind), e.address, e.changes} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(text)))
		b = append(b, text...)
	}
	d.Write(b)
}

// loadSealKeys returns the key that seals, which is secret unless that is empty,
// and then the one that the database keeps.
func loadSealKeys(ctx context.Context, st *store, secret []byte) (keys []sealKey, err error) {
	fresh := make([]byte, sha256.Size)
	rand.Read(fresh)
	kept, err := st.secret(ctx, "seal", fresh)
	if err != nil {
		return nil, fmt.Errorf("seal key: %w", err)
	}
	if len(secret) > 0 {
		keys = append(keys, newSealKey(secret))
	}
	return append(keys, newSealKey(kept)), nil
}

// sealSize is how many events a seal covers at most, and sealEvery how often
// new ones are sealed.
const (
	sealSize  = 1000
	sealEvery = time.Second
)

// A sealer seals and trims the events of a database.
type sealer struct {
	st   *store
	key  sealKey
	last seal // that it has seen
}

var errSealsGone = errors.New("seals on events are gone or were changed, and no more are made")

// seal seals what is new, sealSize events at a time. It does not go on from a
// seal before the last that it knows: its key must not seal a changed past anew.
func (s *sealer) seal(ctx context.Context) error {
	for {
		last, err := s.st.lastSeal()
		if err != nil {
			return err
		}
		if last.eventID < s.last.eventID || last.eventID == s.last.eventID && !hmac.Equal(last.mac, s.last.mac) {
			return errSealsGone
		}
		s.last = last
		d, n, upTo := newDigest(), 0, int64(0)
		err = s.st.events(ctx, last.eventID, sealSize, eventFilter{}, func(e *event) {
			n++
			upTo = e.id
			d.add(e)
		})
		if err != nil || n == 0 {
			return err
		}
		if err := s.st.addSeal(ctx, s.key.seal(last.mac, upTo, d.Sum(nil)), last); err != nil {
			return err
		}
	}
}

// trim deletes some events from before a time, and reports whether there may be
// more. What is left still verifies: it deletes up to a seal, which it keeps.
func (s *sealer) trim(ctx context.Context, before, now int64) (more bool, err error) {
	upTo, err := s.st.trimmable(before)
	if err != nil || upTo.eventID == 0 {
		return false, err
	}
	upTo.anchor = s.key.anchor(upTo)
	return true, s.st.trim(ctx, upTo, now)
}

// trimEvery is how often events are looked at for their age. Each trimming is an
// event, which is one day trimmed itself.
const trimEvery = 24 * time.Hour

// run seals events, and trims those that are older than retention (0: none),
// until ctx ends.
func (s *sealer) run(ctx context.Context, retention time.Duration, log *slog.Logger) {
	tick := time.NewTicker(sealEvery)
	defer tick.Stop()
	var nextTrim time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			err := s.seal(ctx)
			if err == nil && retention > 0 && !now.Before(nextTrim) {
				var more bool
				if more, err = s.trim(ctx, now.Add(-retention).Unix(), now.Unix()); err == nil && !more {
					nextTrim = now.Add(trimEvery)
				}
			}
			if errors.Is(err, errSealsGone) {
				log.Error("somebody else has changed the events: see userd events verify", "err", err)
				return
			}
			if err != nil && ctx.Err() == nil {
				log.Warn("events could not be sealed or trimmed", "err", err)
			}
		}
	}
}

// A head is where a chain of seals ended when somebody noted it.
type head struct {
	eventID int64
	mac     string
}

func (h head) String() string { return fmt.Sprintf("%d:%s", h.eventID, h.mac) }

// A verdict is what holds of the events of a database.
type verdict struct {
	events   int // that hold
	seals    int
	unsealed int
	head     head
}

// verifyEvents checks every event against the seals. The seals must be by the
// first of the keys, or by another where they are no newer than noted, a head
// from an earlier time, which must still be there unless it is zero. The error
// names the first range that does not hold.
func verifyEvents(ctx context.Context, st *store, keys []sealKey, noted head) (v verdict, err error) {
	var fault error
	var prev seal // zero: there is none before
	d, n := newDigest(), 0
	keyOf := func(x *seal, by func(sealKey) bool) (trusted, known bool) {
		for i, k := range keys {
			if by(k) {
				return i == 0 || x.eventID <= noted.eventID, true
			}
		}
		return false, false
	}
	seen, trimmedTo := false, int64(0)
	err = st.trail(ctx, func(e *event, x *seal) {
		switch {
		case fault != nil:
			return
		case x == nil:
			n++
			d.add(e)
			return
		}
		names := fmt.Sprintf("events %d to %d", prev.eventID+1, x.eventID)
		trimmed := v.seals == 0 && n == 0
		trusted, known := keyOf(x, func(k sealKey) bool {
			if trimmed {
				return hmac.Equal(x.anchor, k.anchor(*x))
			}
			return k.id == x.keyID
		})
		switch {
		case trimmed && !known:
			fault = fmt.Errorf("%s are gone, and nobody with the key has trimmed them", names)
		case !known:
			fault = fmt.Errorf("%s are sealed under another key, %q", names, shorten(x.keyID))
		case !trimmed && !validSeal(keys, prev, x, d):
			fault = fmt.Errorf("%s were changed, removed or inserted", names)
		case !trusted:
			fault = fmt.Errorf("%s are sealed under the key in the database alone: if that is from before EVENT_SEAL_KEY was set, give the head of that time", names)
		}
		if fault != nil {
			return
		}
		if trimmed {
			trimmedTo = x.eventID
		}
		prev = *x
		v.seals++
		v.events += n
		v.head = head{x.eventID, hex.EncodeToString(x.mac)}
		seen = seen || v.head == noted
		d, n = newDigest(), 0
	})
	v.unsealed = n
	switch {
	case err != nil:
		return v, err
	case fault != nil:
		return v, fault
	case seen || noted == (head{}):
		return v, nil
	case noted.eventID < trimmedTo:
		return v, fmt.Errorf("the events of the head that was noted are trimmed: note a newer one")
	case noted.eventID > v.head.eventID:
		return v, fmt.Errorf("events %d to %d, up to the head that was noted, are gone", v.head.eventID+1, noted.eventID)
	}
	return v, fmt.Errorf("events up to %d are not those of the head that was noted", noted.eventID)
}

// validSeal reports whether x is the seal, after prev, of the events of a digest.
func validSeal(keys []sealKey, prev seal, x *seal, d digest) bool {
	for _, k := range keys {
		if k.id == x.keyID {
			return hmac.Equal(x.mac, k.seal(prev.mac, x.eventID, d.Sum(nil)).mac)
		}
	}
	return false
}
