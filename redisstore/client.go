package redisstore

import (
	"cmp"
	"context"
	"crypto/sha1" // by which Redis names scripts
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// Client sends commands to Redis, which is one server or a Cluster. It is safe for
// concurrent use.
type Client interface {
	// Do sends the commands, one or several, and returns an answer for each, in their
	// order. It takes one round trip, or one for each node of a Cluster. When ctx ends the
	// Store leaves it, and it should send nothing more. A command that may have reached
	// Redis may be sent again: none of them does harm when it runs twice. A Client that ends
	// with ctx by itself can save the Store a goroutine for each call, by a method
	// EndsWithContext() bool, as a [ganbauth.TokenStore] has it.
	Do(ctx context.Context, commands []Command) []Answer
	// Memory returns the answer to INFO memory of each node that has tokens. Its error is
	// an [ErrUnfit] if the client itself is set up so that tokens are not safe.
	Memory(ctx context.Context) (infos []string, err error)
}

// Spare is an optional interface of a [Client] whose connections the application can use
// up. A lock must be extended just when its refreshes take long.
type Spare interface {
	// Beats returns a client that has connections of its own, a few.
	Beats() Client
	// Rest is called when this process holds no lock any more, and closes these
	// connections. Beats may be called again later.
	Rest()
}

// Command is a command of Redis: words, then keys, then arguments. Any part may be empty
// but the words.
type Command struct {
	Words, Keys, Args []string
}

// Format implements [fmt.Formatter]. It shows no argument, whatever the verb: tokens are
// among them.
func (c Command) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "redisstore.Command(%q and %d arguments)", c.Words[:min(len(c.Words), 1)], len(c.Args))
}

// LogValue implements [slog.LogValuer] and shows no argument.
func (c Command) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(c)) }

// MarshalText always fails, and so do encoding/json and other encodings that use it: tokens
// are among the arguments.
func (Command) MarshalText() ([]byte, error) { return nil, errNotToEncode }

// GobEncode always fails, as MarshalText does.
func (Command) GobEncode() ([]byte, error) { return nil, errNotToEncode }

// Answer is what Redis answers to a [Command].
type Answer struct {
	// Value is a string, an int64, a list of these as []any, or nil if there is nothing.
	Value any
	// Err is an error of Redis, whose text begins with its code ("NOSCRIPT …"), or of the
	// way to it. After an error of the way the command may have run.
	Err error
}

// Format implements [fmt.Formatter]. It shows the error and no value, whatever the verb: a
// token may be one.
func (a Answer) Format(f fmt.State, _ rune) {
	if a.Err != nil {
		fmt.Fprintf(f, "redisstore.Answer(%v)", a.Err)
		return
	}
	fmt.Fprintf(f, "redisstore.Answer(a %T)", a.Value)
}

// LogValue implements [slog.LogValuer] and shows no value.
func (a Answer) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(a)) }

// MarshalText always fails, and so do encoding/json and other encodings that use it: a
// token may be the value.
func (Answer) MarshalText() ([]byte, error) { return nil, errNotToEncode }

// GobEncode always fails, as MarshalText does.
func (Answer) GobEncode() ([]byte, error) { return nil, errNotToEncode }

var errNotToEncode = errors.New("redisstore: commands and answers are not to be encoded, as tokens are in them")

// How long one call may take, whatever the client's timeouts and retries are.
const callTimeout = 3 * time.Second

var errNoAnswer = errors.New("the client has not answered every command")

// do sends commands with the time that one call may take.
func (s *Store) do(ctx context.Context, client Client, commands ...Command) []Answer {
	ctx, cancel := WithTimeout(ctx, callTimeout)
	defer cancel()
	var answers []Answer
	var err error
	if prompt, ok := client.(interface{ EndsWithContext() bool }); ok && prompt.EndsWithContext() {
		answers = client.Do(ctx, commands)
	} else {
		answers, err = await(ctx, func() ([]Answer, error) { return client.Do(ctx, commands), nil })
	}
	for len(answers) < len(commands) {
		answers = append(answers, Answer{Err: cmp.Or(err, errNoAnswer)})
	}
	return answers
}

// await runs fn, and leaves it when ctx ends: few clients heed that while they connect or
// wait for an answer.
func await[T any](ctx context.Context, fn func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	answered := make(chan answer, 1)
	go func() {
		a := answer{err: errNoAnswer}
		defer func() {
			if p := recover(); p != nil {
				a.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
			answered <- a
		}()
		a.value, a.err = fn()
	}()
	select {
	case a := <-answered:
		return a.value, a.err
	case <-ctx.Done():
		return *new(T), fmt.Errorf("no answer from Redis: %w", ctx.Err())
	}
}

func (s *Store) one(ctx context.Context, c Command) Answer { return s.do(ctx, s.client, c)[0] }

// script is a Lua script, which Redis knows by its hash once it has run it.
type script struct{ text, hash string }

func newScript(text string) script {
	sum := sha1.Sum([]byte(text))
	return script{text, hex.EncodeToString(sum[:])}
}

func (sc script) command(keys, args []string) Command {
	return Command{[]string{"EVALSHA", sc.hash, strconv.Itoa(len(keys))}, keys, args}
}

func (s *Store) run(ctx context.Context, client Client, sc script, keys []string, args ...string) Answer {
	return s.runAll(ctx, client, sc, []Command{sc.command(keys, args)})[0]
}

// runAll runs the script's commands in one round trip, and once more those whose node
// does not know the script yet.
func (s *Store) runAll(ctx context.Context, client Client, sc script, commands []Command) []Answer {
	answers := s.do(ctx, client, commands...)
	var unknown []int
	var again []Command
	for i, a := range answers {
		if isError(a.Err, "NOSCRIPT") {
			c := commands[i]
			c.Words = []string{"EVAL", sc.text, c.Words[2]}
			unknown, again = append(unknown, i), append(again, c)
		}
	}
	if len(again) > 0 {
		for n, a := range s.do(ctx, client, again...) {
			answers[unknown[n]] = a
		}
	}
	return answers
}

func isError(err error, code string) bool {
	return err != nil && strings.HasPrefix(err.Error(), code)
}
