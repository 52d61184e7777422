package redisstore_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth/redisstore"
)

type key struct{}

// It ends when a context of context.WithTimeout does, whoever asks first and when.
func TestTimeout(t *testing.T) {
	cause := errors.New("the cause")
	none := func(context.CancelCauseFunc, context.CancelFunc) {}
	for name, c := range map[string]struct {
		before time.Duration // until somebody asks
		end    func(parent context.CancelCauseFunc, cancel context.CancelFunc)
		want   error
		cause  error
	}{
		"nothing has happened":          {0, none, nil, nil},
		"the time is over":              {time.Second, none, context.DeadlineExceeded, context.DeadlineExceeded},
		"the parent has ended":          {0, func(parent context.CancelCauseFunc, _ context.CancelFunc) { parent(cause) }, context.Canceled, cause},
		"canceled":                      {0, func(_ context.CancelCauseFunc, cancel context.CancelFunc) { cancel() }, context.Canceled, context.Canceled},
		"canceled when it had ended":    {2 * time.Second, func(_ context.CancelCauseFunc, cancel context.CancelFunc) { cancel() }, context.DeadlineExceeded, context.DeadlineExceeded},
		"canceled twice":                {0, func(_ context.CancelCauseFunc, cancel context.CancelFunc) { cancel(); cancel() }, context.Canceled, context.Canceled},
		"canceled before the parent is": {0, func(parent context.CancelCauseFunc, cancel context.CancelFunc) { cancel(); parent(cause) }, context.Canceled, nil},
	} {
		for first, ask := range map[string]func(context.Context){
			"Done":  func(ctx context.Context) { ctx.Done() },
			"Err":   func(ctx context.Context) { _ = ctx.Err() },
			"Value": func(ctx context.Context) { ctx.Value(name) },
			"Cause": func(ctx context.Context) { _ = context.Cause(ctx) },
			"child": func(ctx context.Context) {
				child, cancel := context.WithCancel(ctx)
				cancel()
				<-child.Done()
			},
		} {
			for _, early := range []bool{true, false} {
				synctest.Test(t, func(t *testing.T) {
					parent, endParent := context.WithCancelCause(context.WithValue(t.Context(), key{}, "value"))
					defer endParent(nil)
					ctx, cancel := redisstore.WithTimeout(parent, time.Second)
					defer cancel()
					if early {
						ask(ctx)
					}
					time.Sleep(c.before)
					c.end(endParent, cancel)
					if !early {
						ask(ctx)
					}
					synctest.Wait()
					require.Equal(t, c.want, ctx.Err(), "%s, %s", name, first)
					select {
					case <-ctx.Done():
						require.Error(t, c.want, "%s, %s", name, first)
					default:
						require.NoError(t, c.want, "%s, %s", name, first)
					}
					if c.cause != nil {
						require.Equal(t, c.cause, context.Cause(ctx), "%s, %s", name, first)
					}
					require.Equal(t, "value", ctx.Value(key{}), "%s, %s", name, first)
				})
			}
		}
	}
}

// Whoever waits is woken, by the time and by cancel, and so are those who wait for a child.
func TestWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		ctx, cancel := redisstore.WithTimeout(t.Context(), time.Second)
		defer cancel()
		child, cancelChild := context.WithCancel(ctx)
		defer cancelChild()
		<-child.Done()
		require.Equal(t, time.Second, time.Since(begun))
		require.Equal(t, context.DeadlineExceeded, child.Err())

		ctx, cancel = redisstore.WithTimeout(t.Context(), time.Hour)
		time.AfterFunc(time.Second, cancel)
		<-ctx.Done()
		require.Equal(t, 2*time.Second, time.Since(begun))
	})
}

// The earlier deadline holds.
func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		parent, cancelParent := context.WithTimeout(t.Context(), time.Minute)
		defer cancelParent()
		for timeout, want := range map[time.Duration]time.Duration{time.Second: time.Second, time.Hour: time.Minute} {
			ctx, cancel := redisstore.WithTimeout(parent, timeout)
			defer cancel()
			deadline, ok := ctx.Deadline()
			require.True(t, ok)
			require.Equal(t, want, time.Until(deadline))
		}
		ctx, cancel := redisstore.WithTimeout(t.Context(), time.Second)
		defer cancel()
		deadline, _ := ctx.Deadline()
		require.Equal(t, time.Second, time.Until(deadline))
	})
}

// A call that nobody waits for starts no timer: it allocates the context and its cancel.
func TestNothingIsStarted(t *testing.T) {
	parent := context.WithValue(t.Context(), key{}, "value")
	require.Equal(t, 2.0, testing.AllocsPerRun(100, func() {
		ctx, cancel := redisstore.WithTimeout(parent, time.Second)
		_, _ = ctx.Deadline()
		if ctx.Err() != nil || ctx.Value(key{}) != "value" {
			panic("it has ended, or has lost a value")
		}
		cancel()
	}))
}

// What a timeout costs that nobody waits for: go test -bench WithTimeout
func BenchmarkWithTimeout(b *testing.B) {
	for name, with := range map[string]func(context.Context, time.Duration) (context.Context, context.CancelFunc){
		"context": context.WithTimeout, "redisstore": redisstore.WithTimeout,
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				_, cancel := with(b.Context(), time.Second)
				cancel()
			}
		})
	}
}
