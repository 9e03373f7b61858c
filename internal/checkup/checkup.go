// Package checkup limits how often an expensive check runs.
package checkup

import (
	"context"
	"errors"
	"time"
)

// A Checkup caches the result of an expensive check. However many callers there
// are, the check runs at most once per interval and never concurrently. A check
// that hangs, in a disk or behind a lock, cannot be stopped: until it returns, no
// other one starts, and each caller waits only for the timeout.
type Checkup struct {
	interval time.Duration // from the start of a check to the start of the next
	timeout  time.Duration
	check    func(context.Context) error // its context ends after the timeout
	mono     func() time.Duration

	slot    chan struct{} // holds a value while a check runs or a caller uses the fields below
	started time.Duration // the start of the latest check
	err     error         // its result
}

// New returns a Checkup of a check. The interval is from the start of a check to the start
// of the next. The context of a check ends after the timeout. mono is a monotonic clock.
func New(interval, timeout time.Duration, mono func() time.Duration, check func(context.Context) error) *Checkup {
	return &Checkup{interval: interval, timeout: timeout, check: check, mono: mono, slot: make(chan struct{}, 1), started: -interval}
}

// ErrTimeout is the result of a check that takes too long.
var ErrTimeout = errors.New("the check did not end in time")

// Result returns the result of the latest check, and runs the check first if the
// latest one started an interval ago or earlier. It returns ErrTimeout if the
// check does not end within the timeout.
func (c *Checkup) Result() error {
	timeout := time.After(c.timeout)
	select {
	case c.slot <- struct{}{}:
	case <-timeout:
		return ErrTimeout
	}
	now := c.mono() // read in the slot: a caller that waited for a check must not run another
	if now-c.started < c.interval {
		defer func() { <-c.slot }()
		return c.err
	}
	c.started = now
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
		defer cancel()
		err := c.check(ctx)
		c.err = err
		<-c.slot
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-timeout:
		return ErrTimeout
	}
}
