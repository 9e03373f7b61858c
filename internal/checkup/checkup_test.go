package checkup

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// mono returns a clock of the time since now.
func mono() func() time.Duration {
	start := time.Now()
	return func() time.Duration { return time.Since(start) }
}

func TestACheckRunsOncePerIntervalAndNeverConcurrently(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var running, runs atomic.Int64
		failure := errors.New("failed")
		c := New(time.Minute, 10*time.Second, mono(), func(context.Context) error {
			if running.Add(1) != 1 {
				t.Error("two checks run concurrently")
			}
			defer running.Add(-1)
			time.Sleep(3 * time.Second)
			if runs.Add(1) == 2 {
				return failure
			}
			return nil
		})
		ask := func(wantErr error, wantRuns int64, wantWait time.Duration) {
			t.Helper()
			start := time.Now()
			var callers sync.WaitGroup
			for range 20 {
				callers.Go(func() {
					if err := c.Result(); err != wantErr {
						t.Errorf("got %v, want %v", err, wantErr)
					}
				})
			}
			callers.Wait()
			if got := runs.Load(); got != wantRuns {
				t.Errorf("the check ran %d times, want %d", got, wantRuns)
			}
			if got := time.Since(start); got != wantWait {
				t.Errorf("the callers waited %v, want %v", got, wantWait)
			}
		}
		ask(nil, 1, 3*time.Second)
		ask(nil, 1, 0)
		time.Sleep(57*time.Second - 1) // a minute after the check began, less one nanosecond
		ask(nil, 1, 0)
		time.Sleep(time.Nanosecond)
		ask(failure, 2, 3*time.Second)
		ask(failure, 2, 0)
		time.Sleep(time.Minute)
		ask(nil, 3, 3*time.Second)
	})
}

func TestACheckThatHangsDelaysCallersOnlyByTheTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		release := make(chan struct{})
		c := New(time.Second, 2*time.Second, mono(), func(ctx context.Context) error {
			if runs.Add(1) > 1 {
				return nil
			}
			if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) != 2*time.Second {
				t.Errorf("the deadline of the check is %v", deadline)
			}
			<-release
			return ctx.Err()
		})
		var callers sync.WaitGroup
		for range 100 {
			callers.Go(func() {
				start := time.Now()
				if err := c.Result(); err != ErrTimeout {
					t.Errorf("got %v, want %v", err, ErrTimeout)
				}
				if got := time.Since(start); got != 2*time.Second {
					t.Errorf("the caller waited %v", got)
				}
			})
			time.Sleep(100 * time.Millisecond)
		}
		callers.Wait()
		if got := runs.Load(); got != 1 {
			t.Errorf("the check ran %d times while the first one hung", got)
		}
		close(release)
		synctest.Wait()
		if err := c.Result(); err != nil || runs.Load() != 2 {
			t.Errorf("after it ended: %v after %d runs", err, runs.Load())
		}
	})
}
