package ganbauth_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

func TestRedirectsAreNotFollowed(t *testing.T) {
	evil := newOP(t, answersJSON(goodToken))
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, location := range []string{evil.URL + "/token", "//" + evil.Listener.Addr().String() + "/token", "/other", `\\evil.example`, ""} {
			t.Run(fmt.Sprint("", status, " ", strings.ReplaceAll(location, "/", "|")), func(t *testing.T) {
				o := newOP(t, func(w http.ResponseWriter, _ *http.Request) {
					if location != "" {
						w.Header().Set("Location", location)
					}
					w.WriteHeader(status)
				})
				bothGrants(t, o.connector(t), func(t *testing.T, _ *ganbauth.Token, err error) {
					var e *ganbauth.TokenError
					require.ErrorAs(t, err, &e)
					require.Equal(t, status, e.StatusCode)
				})
				require.EqualValues(t, 2, o.hits.Load())
			})
		}
	}
	require.Zero(t, evil.hits.Load())
}

// hijack takes over the connection once the request is read.
func hijack(serve func(net.Conn)) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		serve(conn)
	}
}

func TestHostileNetwork(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"endless white space": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			for {
				if _, err := io.WriteString(w, strings.Repeat(" ", 64<<10)); err != nil {
					return
				}
			}
		},
		"Content-Length of 10 GiB": hijack(func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10737418240\r\n\r\n{")
			time.Sleep(50 * time.Millisecond)
		}),
		"br": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "br")
			answersJSON("\x0b\x02\x80")(w, r)
		},
		"gzip that is none": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			answersJSON(goodToken)(w, r)
		},
		"header of 12 MiB": hijack(func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 12<<20)+"\r\n\r\n")
		}),
		"header of 100 KiB before a good answer": hijack(func(c net.Conn) {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX: %s\r\n\r\n%s", strings.Repeat("x", 100<<10), goodToken)
		}),
		"100,000 header lines": hijack(func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\n"+strings.Repeat("X-Y: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", 100_000)+"\r\n")
		}),
		"closed before any byte": hijack(func(net.Conn) {}),
		"read, then reset":       hijack(func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) }),
		"closed in the body": hijack(func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"+goodToken)
		}),
		"chunked without an end": hijack(func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
		}),
		"no HTTP at all":        hijack(func(c net.Conn) { io.WriteString(c, strings.ReplaceAll(goodToken, " ", "+")+"\r\n\r\n") }),
		"a header that is lost": hijack(func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\n"+goodToken[1:]+"\r\n\r\n") }),
		"a status that is none": hijack(func(c net.Conn) { io.WriteString(c, "HTTP/1.1 RT-2\r\n\r\n") }),
		"a length that is none": hijack(func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: RT-2\r\n\r\n") }),
		"a Location that is none": hijack(func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 302 Found\r\nLocation: https://x/%zz?t=RT-2\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		}),
		"a trailer that is none": hijack(func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n2\r\n{}\r\n0\r\n"+strings.ReplaceAll(goodToken, ":", ";")+"\r\n\r\n")
		}),
		"garbage":                   hijack(func(c net.Conn) { io.WriteString(c, "\x16\x03\x01 what\n\n") }),
		"malformed header with ESC": hijack(func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\n\x1b[31mINFO login ok\r\n\r\n") }),
	} {
		t.Run(name, func(t *testing.T) {
			o := newOP(t, h)
			cfg := o.config()
			cfg.HTTPClient = nil
			c := newConnector(t, ganbauth.AuthBasic, cfg)
			bothGrants(t, c, func(t *testing.T, token *ganbauth.Token, err error) {
				require.Error(t, err)
				require.Nil(t, token)
				require.NotContains(t, err.Error(), "\x1b")
			})
			require.EqualValues(t, 2, o.hits.Load(), "what may have been processed is not sent again")
		})
	}
	t.Run("of 10 GiB no more than 1 MiB is read", func(t *testing.T) {
		body := &endless{}
		c := newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", Salt: "s",
			HTTPClient: &http.Client{Transport: roundTripFunc(func(*http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 200, Header: jsonType, ContentLength: 10 << 30, Body: body}, nil
			})}})
		_, err := c.RefreshTokens(t.Context(), "RT-1")
		require.ErrorContains(t, err, "longer than")
		require.LessOrEqual(t, body.read, 1<<20+1)
		require.True(t, body.closed)
	})
	t.Run("a gzip bomb is cut at 1 MiB after inflation", func(t *testing.T) {
		bomb := gzipped(strings.Repeat(" ", 64<<20)) // takes seconds on a busy machine
		o := newOP(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(bomb)
		})
		_, err := o.connector(t).OAuthToken(t.Context(), callbackURI, "c")
		require.ErrorContains(t, err, "longer than 1048576 bytes")
	})
	t.Run("100 and 103 before the answer", func(t *testing.T) {
		o := newOP(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			answersJSON(goodToken)(w, r)
		})
		_, err := o.connector(t).OAuthToken(t.Context(), callbackURI, "c")
		require.NoError(t, err)
	})
	t.Run("connection refused", func(t *testing.T) {
		o := newOP(t, nil)
		o.Close()
		_, err := o.connector(t).RefreshTokens(t.Context(), "RT-1")
		var e *ganbauth.TokenError
		require.ErrorAs(t, err, &e)
		require.Zero(t, e.StatusCode)
		require.True(t, e.Temporary())
		var dial *net.OpError
		require.ErrorAs(t, err, &dial, "the cause is wrapped")
	})
}

// A token request is not repeated on a kept connection that dies before the answer.
func TestF2TokenRequestIsSentOnce(t *testing.T) {
	var o *op
	o = newOP(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(*o.body.Load(), "RT-2") {
			hijack(func(net.Conn) {})(w, r)
			return
		}
		answersJSON(goodToken)(w, r)
	})
	c := o.connector(t)
	for range 5 { // until it goes over the kept connection
		o.hits.Store(0)
		_, err := c.RefreshTokens(t.Context(), "RT-1")
		require.NoError(t, err)
		first := o.seen.Load().RemoteAddr
		_, err = c.RefreshTokens(t.Context(), "RT-2")
		require.Error(t, err)
		require.EqualValues(t, 2, o.hits.Load())
		if o.seen.Load().RemoteAddr == first {
			return
		}
	}
	t.Fatal("never over a kept connection")
}

// An application's own default goes before the kit's.
func TestDefaultTransport(t *testing.T) {
	own := ganbauth.DefaultTransport().(*http.Transport)
	require.Equal(t, []int{1024, 1024, 1024}, []int{own.MaxIdleConns, own.MaxIdleConnsPerHost, own.MaxConnsPerHost})
	require.EqualValues(t, 64<<10, own.MaxResponseHeaderBytes)
	std := http.DefaultTransport
	defer func() { http.DefaultTransport = std }()
	others := roundTripper(func(*http.Request) (*http.Response, error) { return nil, errors.New("the application's") })
	http.DefaultTransport = others
	_, err := ganbauth.DefaultTransport().RoundTrip(nil)
	require.ErrorContains(t, err, "the application's")
}

// Slow calls of the API take no connection that token requests need, unless the application
// has lent one Transport for both.
func TestTransportsAreApart(t *testing.T) {
	lent := &http.Transport{}
	for name, c := range map[string]struct {
		client *http.Client
		apart  bool
	}{"none lent": {nil, true}, "a client without one": {&http.Client{}, true}, "lent": {&http.Client{Transport: lent}, false}} {
		kit, err := ganbauth.New(newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", Salt: "s", HTTPClient: c.client}), nil,
			ganbauth.Options{
				RedirectURI: appURL + "/cb", Scopes: []string{"a"}, Logger: discard, Store: ganbauth.NewMemoryStore(),
				Key: keyIs("u"),
			})
		require.NoError(t, err)
		tokens, api := ganbauth.Transports(kit)
		require.Equal(t, c.apart, tokens != api, name)
		require.Equal(t, !c.apart, tokens == lent, name)
	}
}

// A crowd's connections are kept for the next crowd, not two of them, which is net/http's
// default.
func TestConnectionsAreKept(t *testing.T) {
	const crowd = 100
	var waiting, connections atomic.Int32
	var known sync.Map
	everybody := make(chan struct{})
	o := newOP(t, func(w http.ResponseWriter, r *http.Request) {
		if _, ok := known.LoadOrStore(r.RemoteAddr, true); !ok {
			connections.Add(1)
		}
		if waiting.Add(1) == crowd {
			close(everybody)
		}
		<-everybody
		answersJSON(goodToken)(w, r)
	})
	cfg := o.config()
	cfg.HTTPClient = nil
	c := newConnector(t, ganbauth.AuthBasic, cfg)
	opened := func() int32 {
		before := connections.Load()
		var wg sync.WaitGroup
		for range crowd {
			wg.Go(func() {
				if _, err := c.RefreshTokens(t.Context(), "RT-1"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		return connections.Load() - before
	}
	require.EqualValues(t, crowd, opened())
	require.Less(t, opened(), int32(crowd/2), "a few may not be back yet")
}

// A trace in the caller's context sees no token request, with the client secret in it. The
// other values are there for the lent Transport, and the context's end is.
func TestTraceSeesNoSecret(t *testing.T) {
	type span struct{}
	o := newOP(t, answersJSON(goodToken))
	cfg := o.config()
	cfg.HTTPClient.Transport = roundTripFunc(func(r *http.Request) (*http.Response, error) {
		require.Equal(t, "of the caller", r.Context().Value(span{}))
		require.Nil(t, httptrace.ContextClientTrace(r.Context()))
		return http.DefaultTransport.RoundTrip(r)
	})
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), span{}, "of the caller"))
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteHeaderField: func(name string, _ []string) { t.Error(name) },
		GetConn:          func(string) { t.Error("GetConn") },
	})
	for _, method := range []ganbauth.AuthMethod{ganbauth.AuthBasic, ganbauth.AuthPost} {
		_, err := newConnector(t, method, cfg).RefreshTokens(ctx, "RT-1")
		require.NoError(t, err)
	}
	cancel()
	_, err := newConnector(t, ganbauth.AuthBasic, cfg).RefreshTokens(ctx, "RT-1")
	require.ErrorIs(t, err, context.Canceled)
}

// Neither silence nor a drip outlasts the deadline for the whole answer. The caller's
// client without a timeout makes no difference.
func TestDeadline(t *testing.T) {
	for name, body := range map[string]io.Reader{
		"silence":         nil,
		"a byte a second": &drip{},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				transport := roundTripFunc(func(r *http.Request) (*http.Response, error) {
					if body == nil {
						<-r.Context().Done()
						return nil, r.Context().Err()
					}
					return &http.Response{StatusCode: 200, Header: header("Content-Type", "application/json"), ContentLength: -1,
						Body: io.NopCloser(&dripUntil{r.Context(), body})}, nil
				})
				c := newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", Salt: "s",
					HTTPClient: &http.Client{Transport: transport}})
				start := time.Now()
				_, err := c.RefreshTokens(context.Background(), "RT-1")
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.LessOrEqual(t, time.Since(start), 31*time.Second)
			})
		})
	}
	t.Run("I12 an answer that is whole just before 30 s is taken", func(t *testing.T) {
		for _, lent := range []time.Duration{0, 30 * time.Second, time.Hour} {
			synctest.Test(t, func(t *testing.T) {
				transport := roundTripFunc(func(r *http.Request) (*http.Response, error) {
					time.Sleep(15 * time.Second)
					return &http.Response{StatusCode: 200, Header: jsonType, ContentLength: -1, Body: io.NopCloser(io.MultiReader(
						strings.NewReader(goodToken), &dripUntil{r.Context(), io.LimitReader(&drip{}, 14)},
					))}, nil
				})
				c := newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", Salt: "s",
					HTTPClient: &http.Client{Transport: transport, Timeout: lent}})
				start := time.Now()
				_, err := c.RefreshTokens(context.Background(), "RT-1")
				require.NoError(t, err)
				require.Equal(t, 29*time.Second, time.Since(start))
			})
		}
	})
	t.Run("a longer timeout of the caller's client does not count", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", Salt: "s",
				HTTPClient: &http.Client{Timeout: time.Hour, Transport: roundTripFunc(func(r *http.Request) (*http.Response, error) {
					<-r.Context().Done()
					return nil, r.Context().Err()
				})}})
			start := time.Now()
			_, err := c.RefreshTokens(context.Background(), "RT-1")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, 30*time.Second, time.Since(start))
		})
	})
	t.Run("a shorter timeout of the caller's client counts", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", Salt: "s",
				HTTPClient: &http.Client{Timeout: 3 * time.Second, Transport: roundTripFunc(func(r *http.Request) (*http.Response, error) {
					<-r.Context().Done()
					return nil, r.Context().Err()
				})}})
			start := time.Now()
			_, err := c.RefreshTokens(context.Background(), "RT-1")
			require.Error(t, err)
			require.Equal(t, 3*time.Second, time.Since(start))
		})
	})
}

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type drip struct{}

func (*drip) Read(p []byte) (int, error) {
	time.Sleep(time.Second)
	p[0] = ' '
	return 1, nil
}

type dripUntil struct {
	ctx context.Context
	r   io.Reader
}

func (d *dripUntil) Read(p []byte) (int, error) {
	if err := d.ctx.Err(); err != nil {
		return 0, err
	}
	return d.r.Read(p)
}

// TLS is checked, and nothing is sent before it is.
func TestTLS(t *testing.T) {
	o := &op{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.hits.Add(1)
		answersJSON(goodToken)(w, r)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	trusting := server.Client().Transport.(*http.Transport)

	for name, test := range map[string]struct {
		url       string
		transport http.RoundTripper
	}{
		"unknown CA":                 {server.URL, nil},
		"wrong name":                 {strings.Replace(server.URL, "127.0.0.1", "localhost", 1), trusting},
		"plain HTTP on the TLS port": {strings.Replace(server.URL, "https", "http", 1), nil},
	} {
		t.Run(name, func(t *testing.T) {
			c := newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: test.url, Salt: "s", HTTPClient: &http.Client{Transport: test.transport}})
			_, err := c.RefreshTokens(t.Context(), "RT-1")
			require.Error(t, err)
			require.Zero(t, o.hits.Load())
		})
	}
	t.Run("TLS 1.1 only", func(t *testing.T) {
		old := httptest.NewUnstartedServer(server.Config.Handler)
		old.Config.ErrorLog = log.New(io.Discard, "", 0)
		old.TLS = &tls.Config{MinVersion: tls.VersionTLS11, MaxVersion: tls.VersionTLS11}
		old.StartTLS()
		defer old.Close()
		c := newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: old.URL, Salt: "s", HTTPClient: old.Client()})
		_, err := c.RefreshTokens(t.Context(), "RT-1")
		require.Error(t, err)
		require.Zero(t, o.hits.Load())
	})
	t.Run("a trusted server", func(t *testing.T) {
		c := newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: server.URL, Salt: "s", HTTPClient: server.Client()})
		_, err := c.RefreshTokens(t.Context(), "RT-1")
		require.NoError(t, err)
	})
}
