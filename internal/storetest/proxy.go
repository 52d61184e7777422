package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

// Proxy stands between a store and its engine. It can keep answers back, and lose one.
type Proxy struct {
	Addr string

	listener net.Listener

	mu     sync.Mutex
	closed bool
	conns  []net.Conn
	opened int
	silent chan struct{}             // answers wait until it is closed
	lose   func(request []byte) bool // the answer to such a request is lost, with its connection
}

// NewProxy returns a proxy in front of engine, an address. Without an engine it takes
// requests and never answers.
func NewProxy(t *testing.T, engine string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &Proxy{Addr: l.Addr().String(), listener: l}
	t.Cleanup(p.Close)
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			p.add(client)
			if engine == "" {
				go func() { _, _ = io.Copy(io.Discard, client) }()
				continue
			}
			server, err := net.Dial("tcp", engine)
			if err != nil {
				client.Close()
				continue
			}
			p.add(server)
			go p.forward(client, server)
		}
	}()
	return p
}

func (p *Proxy) add(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		conn.Close()
	}
	p.conns = append(p.conns, conn)
	p.opened++
}

// forward passes requests on, and in another goroutine the answers.
func (p *Proxy) forward(client, server net.Conn) {
	defer client.Close()
	lost := make(chan struct{})
	go p.answer(client, server, lost)
	buffer := make([]byte, 64<<10)
	for {
		n, err := client.Read(buffer)
		if err != nil {
			server.Close()
			return
		}
		p.mu.Lock()
		if p.lose != nil && p.lose(buffer[:n]) {
			p.lose = nil
			close(lost)
		}
		p.mu.Unlock()
		if _, err := server.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// answer passes on what the engine sends, until the reply is to be lost. While the proxy is
// silent it holds everything back.
func (p *Proxy) answer(client, server net.Conn, lost <-chan struct{}) {
	defer client.Close()
	defer server.Close()
	buffer := make([]byte, 64<<10)
	for {
		n, err := server.Read(buffer)
		if err != nil {
			return
		}
		select {
		case <-lost:
			return
		default:
		}
		p.mu.Lock()
		silent := p.silent
		p.mu.Unlock()
		if silent != nil {
			<-silent
		}
		if _, err := client.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// Opened returns how many connections the store has opened so far.
func (p *Proxy) Opened() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opened / 2
}

// Fill has the engine refuse new connections from now on.
func (p *Proxy) Fill() { p.listener.Close() }

// Silence keeps all answers back until the function that it returns is called.
func (p *Proxy) Silence() (end func()) {
	silent := make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = silent
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.silent = nil
		close(silent)
	})
}

// Lose loses the answer to the next request that contains what is given.
func (p *Proxy) Lose(part string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lose = func(request []byte) bool { return bytes.Contains(bytes.ToLower(request), []byte(part)) }
}

// Lost reports whether the answer was lost.
func (p *Proxy) Lost() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lose == nil
}

// Close ends all connections, and takes no more.
func (p *Proxy) Close() {
	p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.Cut()
}

// Cut ends all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range p.conns {
		conn.Close()
	}
	p.conns = nil
}

// F5 tests a store whose engine takes requests and is silent, and whose client has no
// timeouts: each call ends with its context, and without one it ends all the same. When
// the connections are cut, nothing is left of them.
func F5(t *testing.T, p *Proxy, s Store) {
	calls := map[string]func(context.Context) error{
		"Load":       func(ctx context.Context) error { _, err := s.Load(ctx, "k"); return err },
		"Save":       func(ctx context.Context) error { return s.Save(ctx, "k", Token("S3CRET")) },
		"Delete":     func(ctx context.Context) error { return s.Delete(ctx, "k") },
		"Swap":       func(ctx context.Context) error { return s.Swap(ctx, "k", Token("S3CRET"), nil) },
		"Lock":       func(ctx context.Context) error { _, err := s.Lock(ctx, "k"); return err },
		"LockRecord": func(ctx context.Context) error { _, _, err := s.LockRecord(ctx, "k"); return err },
		"Expiring":   func(ctx context.Context) error { _, err := s.Expiring(ctx, time.Now()); return err },
		"ExpiringAfter": func(ctx context.Context) error {
			_, err := s.ExpiringAfter(ctx, ganbauth.Expiry{}, time.Now(), 9)
			return err
		},
	}
	contexts := map[string]func() (context.Context, context.CancelFunc){
		"no deadline": func() (context.Context, context.CancelFunc) { return context.WithCancel(context.Background()) },
		"deadline": func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(context.Background(), 50*time.Millisecond)
		},
		"cancelled": func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(context.Background())
			time.AfterFunc(50*time.Millisecond, cancel)
			return ctx, cancel
		},
	}
	t.Run("calls", func(t *testing.T) {
		for name, call := range calls {
			for kind, limited := range contexts {
				t.Run(name+", "+kind, func(t *testing.T) {
					t.Parallel()
					ctx, cancel := limited()
					defer cancel()
					f5Call(t, ctx, call)
				})
			}
		}
	})
	p.Close()
	requireQuiet(t)
}

// f5Call wants an error of call, soon.
func f5Call(t *testing.T, ctx context.Context, call func(context.Context) error) {
	returned := make(chan error)
	go func() { returned <- call(ctx) }()
	select {
	case err := <-returned:
		require.Error(t, err)
		require.NotErrorIs(t, err, ganbauth.ErrTokenNotFound)
		require.NotErrorIs(t, err, ganbauth.ErrSuperseded)
		require.NotContains(t, err.Error(), "S3CRET")
	case <-time.After(30 * time.Second):
		t.Error("it does not return")
	}
}

// requireQuiet waits until no goroutine of ganbauth's is left.
func requireQuiet(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(40 * time.Second); ganbauthGoroutines() > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(strings.Join(ganbauthStacks(), "\n\n"))
		}
	}
}

// F6 tests a lock whose answer is lost: soon afterwards it can be had, here and there. The
// request that takes the lock contains what mark says of its key.
func F6(t *testing.T, p *Proxy, here, there Store, mark func(key string) string) {
	for _, s := range []Store{here, there} { // scripts and statements are prepared
		unlock, err := s.Lock(t.Context(), "warm")
		require.NoError(t, err)
		unlock()
	}
	for i := range 3 {
		key := fmt.Sprint("lost ", i)
		require.NoError(t, there.Save(t.Context(), key, Token("a")))
		p.Lose(mark(key))
		fingerprint, unlock, err := here.LockRecord(t.Context(), key)
		require.True(t, p.Lost())
		if err == nil {
			require.Equal(t, Token("a").Fingerprint(), fingerprint)
			requireLocked(t, there, key, 100*time.Millisecond)
			unlock()
		}
		for _, s := range []Store{there, here} {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // the lease is ten
			unlock, err := s.Lock(ctx, key)
			require.NoError(t, err)
			unlock()
			cancel()
		}
	}
}

// F7 tests callers that leave while the engine is slow: their connections are used on.
// The store has at most most connections.
func F7(t *testing.T, p *Proxy, s Store, most int) {
	require.NoError(t, s.Save(t.Context(), "slow", Token("a")))
	end := p.Silence()
	defer end()
	var left sync.WaitGroup
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		left.Go(func() {
			if _, err := s.Load(ctx, "slow"); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		time.AfterFunc(20*time.Millisecond, cancel)
	}
	left.Wait() // though nothing is answered
	end()
	for range 50 {
		_, err := s.Load(t.Context(), "slow")
		require.NoError(t, err)
	}
	require.LessOrEqual(t, p.Opened(), most)
}

// F8 tests a living holder whose process has used up the connections of its application.
// The store's lease is a second. When the lock is given back, nothing is left of what
// extended it.
func F8(t *testing.T, s, other Store, starve func(t *testing.T) (feed func()), left func() int) {
	before := left()
	unlock, err := s.Lock(t.Context(), "starved")
	require.NoError(t, err)
	feed := starve(t)
	requireLocked(t, other, "starved", 4*time.Second)
	feed()
	unlock()
	unlock, err = other.Lock(t.Context(), "starved")
	require.NoError(t, err)
	unlock()
	require.Eventually(t, func() bool { return left() <= before }, 20*time.Second, 20*time.Millisecond, "connections are left")
	requireQuiet(t)
}

// F8Full tests an engine that has no more connections: what extends a lock goes over one of
// the application's then. The store s is behind p, and leases last a second.
func F8Full(t *testing.T, p *Proxy, s, other Store) {
	for range 2 { // it is connected
		require.NoError(t, s.Save(t.Context(), "full", Token("a")))
	}
	p.Fill()
	LockIsKept(t, s, other, 4*time.Second)
}
