package redisstore_test

import (
	"bytes"
	"context"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/redisstore"
)

// logging is a Client that logs what passes, as an application's own may.
type logging struct{ out *bytes.Buffer }

func (l logging) Do(_ context.Context, commands []redisstore.Command) []redisstore.Answer {
	record, _ := ganbauth.Token{AccessToken: "S3CRET-access"}.MarshalBinary()
	answers := make([]redisstore.Answer, len(commands))
	for i := range answers {
		answers[i].Value = string(record)
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(l.out, nil), slog.NewJSONHandler(l.out, nil)} {
		slog.New(h).Info("sent", "command", commands[0], "answer", answers[0])
		slog.New(h).Info("sent", "commands", commands, "answers", answers)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		fmt.Fprintf(l.out, verb+verb, commands, answers)
	}
	for _, value := range []any{commands, answers, &commands[0], &answers[0]} {
		for name, err := range map[string]error{
			"JSON": json.NewEncoder(l.out).Encode(value),
			"XML":  xml.NewEncoder(l.out).Encode(value),
			"gob":  gob.NewEncoder(l.out).Encode(value),
		} {
			fmt.Fprintf(l.out, "\n%s: %v\n", name, err)
		}
	}
	return answers
}

func (logging) Memory(context.Context) ([]string, error) { return nil, nil }

// F1: a Client that logs its commands and answers shows no token.
func TestF1CommandsAndAnswersPrintNoToken(t *testing.T) {
	out := &bytes.Buffer{}
	store := redisstore.New(logging{out}, redisstore.Options{})
	token := &ganbauth.Token{AccessToken: "S3CRET-access", RefreshToken: "S3CRET-refresh", ExpiresAt: time.Now().Add(time.Hour)}
	_ = store.Save(t.Context(), "bank/u", token)
	found, err := store.Load(t.Context(), "bank/u")
	require.NoError(t, err)
	require.Equal(t, "S3CRET-access", found.AccessToken, "there was something to show")
	require.Contains(t, out.String(), "EVALSHA")
	encoded := regexp.MustCompile("(?m)^(JSON|XML|gob): (.*)").FindAllStringSubmatch(out.String(), -1)
	require.Len(t, encoded, 2*4*3)
	for _, result := range encoded {
		require.Contains(t, result[2], "are not to be encoded")
	}
	require.NotContains(t, out.String(), "S3CRET")
}

// mute answers nothing.
type mute struct{ logging }

func (mute) Do(context.Context, []redisstore.Command) []redisstore.Answer { return nil }

// A Client that has no answer to a command is taken for one that fails.
func TestClientWithoutAnswers(t *testing.T) {
	s := redisstore.New(mute{}, redisstore.Options{})
	_, err := s.Load(t.Context(), "k")
	require.ErrorContains(t, err, "redisstore: load: the client has not answered every command")
	require.NotErrorIs(t, err, ganbauth.ErrTokenNotFound)
}

// stubborn answers nothing until it is released, whether its caller leaves or not.
type stubborn struct{ released chan struct{} }

func (s stubborn) Do(context.Context, []redisstore.Command) []redisstore.Answer {
	<-s.released
	return nil
}

func (s stubborn) Memory(context.Context) (infos []string, err error) {
	<-s.released
	return nil, nil
}

// F5: a Client that does not end with a context is left.
func TestF5CallsEndWhateverTheClientDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := stubborn{make(chan struct{})}
		s, token := redisstore.New(client, redisstore.Options{}), &ganbauth.Token{AccessToken: "a"}
		for name, call := range map[string]func(context.Context) error{
			"Load":          func(ctx context.Context) error { _, err := s.Load(ctx, "k"); return err },
			"Save":          func(ctx context.Context) error { return s.Save(ctx, "k", token) },
			"Delete":        func(ctx context.Context) error { return s.Delete(ctx, "k") },
			"Swap":          func(ctx context.Context) error { return s.Swap(ctx, "k", nil, token) },
			"Check":         func(ctx context.Context) error { return s.Check(ctx) },
			"ExpiringAfter": func(ctx context.Context) error { _, err := s.Expiring(ctx, time.Now()); return err },
		} {
			ctx, cancel := context.WithCancel(t.Context())
			began := time.Now()
			require.ErrorIs(t, call(ctx), context.DeadlineExceeded, name)
			require.Equal(t, 3*time.Second, time.Since(began), name)
			time.AfterFunc(time.Second, cancel)
			require.ErrorIs(t, call(ctx), context.Canceled, name)
			require.Equal(t, 4*time.Second, time.Since(began), name)
		}
		_, err := s.Lock(t.Context(), "k")
		require.ErrorContains(t, err, "the engine does not answer")
		close(client.released)
		time.Sleep(time.Minute) // the name is given up
	})
}

// prompt says of itself whether it ends with a context, and where it is called from.
type prompt struct {
	logging
	ends bool
	from *string
}

func (p prompt) EndsWithContext() bool { return p.ends }

func (p prompt) Do(context.Context, []redisstore.Command) []redisstore.Answer {
	*p.from = string(debug.Stack())
	return []redisstore.Answer{{}}
}

// A goroutine costs more than a read from memory.
func TestAPromptClientIsCalledWithoutAGoroutine(t *testing.T) {
	for _, ends := range []bool{true, false} {
		var from string
		_, err := redisstore.New(prompt{ends: ends, from: &from}, redisstore.Options{}).Load(t.Context(), "k")
		require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
		require.Equal(t, ends, strings.Contains(from, t.Name()+"("), from)
	}
}

// faulty panics, or ends its goroutine.
type faulty struct {
	logging
	fault func()
}

func (f faulty) Do(context.Context, []redisstore.Command) []redisstore.Answer {
	f.fault()
	return nil
}

// A Client whose call ends in no regular way is taken for one that fails.
func TestFaultyClient(t *testing.T) {
	for why, fault := range map[string]func(){
		"panic: a fault": func() { panic("a fault") },
		"the client has not answered every command": runtime.Goexit,
	} {
		require.ErrorContains(t, redisstore.New(faulty{fault: fault}, redisstore.Options{}).Delete(t.Context(), "k"), why)
	}
}

// silent answers nothing until its caller leaves.
type silent struct{}

func (silent) Do(ctx context.Context, commands []redisstore.Command) []redisstore.Answer {
	<-ctx.Done()
	return nil
}

func (silent) Memory(ctx context.Context) (infos []string, err error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// Redis is asked for its memory at the first lock. Who comes second does not wait for that.
func TestTheSecondLockWaitsForNoCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := redisstore.New(silent{}, redisstore.Options{})
		go func() { _, _ = s.Lock(t.Context(), "first") }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		began := time.Now()
		_, err := s.Lock(ctx, "second")
		require.Error(t, err)
		require.Equal(t, 100*time.Millisecond, time.Since(began))
		time.Sleep(time.Minute) // both names are given up
	})
}

// odd answers what no Redis would.
type odd struct{ logging }

func (odd) Do(_ context.Context, commands []redisstore.Command) []redisstore.Answer {
	answers := make([]redisstore.Answer, len(commands))
	for i := range answers {
		answers[i].Value = []any{int64(1)}
	}
	return answers
}

func TestOddAnswers(t *testing.T) {
	s := redisstore.New(odd{}, redisstore.Options{})
	_, err := s.Load(t.Context(), "k")
	require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
	require.ErrorIs(t, s.Swap(t.Context(), "k", nil, &ganbauth.Token{}), ganbauth.ErrSuperseded)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, unlock, err := s.LockRecord(ctx, "k")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Nil(t, unlock)
}

func TestAnswersSayWhatWentWrong(t *testing.T) {
	require.Equal(t, "redisstore.Answer(MOVED 1)", fmt.Sprint(redisstore.Answer{Err: errors.New("MOVED 1")}))
	require.Equal(t, "redisstore.Answer(a string)", redisstore.Answer{Value: "S3CRET"}.LogValue().String())
	require.Equal(t, `redisstore.Command(["HGET"] and 1 arguments)`,
		redisstore.Command{Words: []string{"HGET", "S3CRET"}, Args: []string{"S3CRET"}}.LogValue().String())
}

// frugal has only what Check asks for.
type frugal struct {
	redisstore.Client
	infos []string
}

func (f frugal) Memory(context.Context) ([]string, error) { return f.infos, nil }

// What INFO says is read by the whole name of a field. A service that says nothing is taken
// as it is.
func TestCheckReadsInfo(t *testing.T) {
	for info, fit := range map[string]bool{
		"": true,
		"# Memory\r\nmaxmemory:1\r\nmaxmemory_policy:allkeys-lru\r\n":                 false,
		"# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n":                 true,
		"# Memory\r\nused_maxmemory:1\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru": true,
	} {
		err := redisstore.New(frugal{infos: []string{"", info}}, redisstore.Options{}).Check(t.Context())
		if fit {
			require.NoError(t, err, info)
		} else {
			require.ErrorIs(t, err, redisstore.ErrUnfit, info)
		}
	}
}
