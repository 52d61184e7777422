package lazy

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

type key struct{}

var errGone = errors.New("gone")

// Whether somebody waits for it or not, it ends as a context of package context does.
func TestEndsLikeWithTimeout(t *testing.T) {
	for _, test := range []struct {
		name       string
		act        func(cancel func(), endParent context.CancelCauseFunc)
		err, cause error
	}{
		{"nothing", func(func(), context.CancelCauseFunc) {}, nil, nil},
		{"early", func(func(), context.CancelCauseFunc) { time.Sleep(time.Second - 1) }, nil, nil},
		{"late", func(func(), context.CancelCauseFunc) { time.Sleep(time.Second) }, context.DeadlineExceeded, context.DeadlineExceeded},
		{"canceled", func(cancel func(), _ context.CancelCauseFunc) { cancel() }, context.Canceled, context.Canceled},
		{"canceled, then late", func(cancel func(), _ context.CancelCauseFunc) { cancel(); time.Sleep(time.Second) }, context.Canceled, context.Canceled},
		{"late, then canceled", func(cancel func(), _ context.CancelCauseFunc) { time.Sleep(time.Second); synctest.Wait(); cancel() }, context.DeadlineExceeded, context.DeadlineExceeded},
		{"the parent ends", func(_ func(), end context.CancelCauseFunc) { end(errGone) }, context.Canceled, errGone},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				parent, end := context.WithCancelCause(context.WithValue(t.Context(), key{}, "value"))
				defer end(nil)
				model, cancelModel := context.WithTimeout(parent, time.Second)
				unseen, cancelUnseen := WithTimeout(parent, time.Second)
				seen, cancelSeen := WithTimeout(parent, time.Second)
				child, cancelChild := context.WithCancel(seen)
				defer cancelChild()
				cancel := func() { cancelModel(); cancelUnseen(); cancelSeen() }
				defer cancel()
				until := time.Now().Add(time.Second)
				test.act(cancel, end)
				synctest.Wait()
				for _, ctx := range []context.Context{model, unseen, seen, child} {
					deadline, _ := ctx.Deadline()
					require.Equal(t, until, deadline)
					require.Equal(t, "value", ctx.Value(key{}))
					require.Equal(t, test.err, ctx.Err())
					require.Equal(t, test.cause, context.Cause(ctx))
					select {
					case <-ctx.Done():
						require.Error(t, test.err)
					default:
						require.NoError(t, test.err)
					}
				}
			})
		})
	}
}

func TestDeadlineOfTheParent(t *testing.T) {
	parent, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	want, _ := parent.Deadline()
	ctx, cancel := WithTimeout(parent, time.Hour)
	defer cancel()
	got, ok := ctx.Deadline()
	require.True(t, ok)
	require.Equal(t, want, got)
}

func TestNoTimerUntilSomebodyWaits(t *testing.T) {
	parent := context.Background()
	require.LessOrEqual(t, testing.AllocsPerRun(100, func() {
		ctx, cancel := WithTimeout(parent, time.Minute)
		_, _ = ctx.Deadline()
		_, _ = ctx.Err(), ctx.Value(key{})
		cancel()
	}), 2.0)
	require.Greater(t, testing.AllocsPerRun(100, func() {
		ctx, cancel := WithTimeout(parent, time.Minute)
		ctx.Done()
		cancel()
	}), 4.0)
}
