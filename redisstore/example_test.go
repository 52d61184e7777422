package redisstore_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
	"github.com/ganbauth/ganbauth/internal/testenv"
	"github.com/ganbauth/ganbauth/redisstore"
)

// plain is a client of the simplest kind: each call has a connection of its own.
type plain struct{ addr string }

func (p plain) Do(ctx context.Context, commands []redisstore.Command) []redisstore.Answer {
	answers := make([]redisstore.Answer, len(commands))
	fail := func(err error) []redisstore.Answer {
		for i := range answers {
			answers[i] = redisstore.Answer{Err: err}
		}
		return answers
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", p.addr)
	if err != nil {
		return fail(err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	request := &strings.Builder{}
	for _, c := range commands {
		fmt.Fprintf(request, "*%d\r\n", len(c.Words)+len(c.Keys)+len(c.Args))
		for _, part := range [][]string{c.Words, c.Keys, c.Args} {
			for _, word := range part {
				fmt.Fprintf(request, "$%d\r\n%s\r\n", len(word), word)
			}
		}
	}
	if _, err := io.WriteString(conn, request.String()); err != nil {
		return fail(err)
	}
	for i, r := 0, bufio.NewReader(conn); i < len(answers); i++ {
		answers[i].Value, answers[i].Err = read(r)
	}
	return answers
}

// read reads an answer of Redis's protocol.
func read(r *bufio.Reader) (any, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	rest := strings.TrimSpace(line[1:])
	n, _ := strconv.ParseInt(rest, 10, 64)
	switch {
	case line[0] == '-':
		return nil, errors.New(rest)
	case line[0] == ':':
		return n, nil
	case line[0] == '$' && n >= 0:
		data := make([]byte, n+2)
		_, err := io.ReadFull(r, data)
		return string(data[:n]), err
	case line[0] == '*' && n >= 0:
		list := make([]any, n)
		for i := range list {
			if list[i], err = read(r); err != nil {
				return nil, err
			}
		}
		return list, nil
	case line[0] == '+':
		return rest, nil
	}
	return nil, nil // there is nothing
}

func (p plain) Memory(ctx context.Context) (infos []string, err error) {
	answer := p.Do(ctx, []redisstore.Command{{Words: []string{"INFO", "memory"}}})[0]
	info, _ := answer.Value.(string)
	return []string{info}, answer.Err
}

// A store for a client that has none yet. Two methods send commands: see plain in this
// file.
func ExampleNew() {
	store := redisstore.New(plain{"redis.internal:6379"}, redisstore.Options{})
	_ = ganbauth.Options{Store: store} // the Locker, too
}

func TestStore(t *testing.T) {
	for name, addr := range map[string]string{
		"server": testenv.Redis(t).Addr, "Cluster": testenv.RedisCluster(t, 1)[0],
	} {
		t.Run(name, func(t *testing.T) {
			ganbtest.TestStore(t, func() ganbauth.TokenStore {
				return redisstore.New(plain{addr}, redisstore.Options{})
			})
		})
	}
}
