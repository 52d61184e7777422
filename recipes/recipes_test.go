// Package recipes runs the recipes of docs/recipes.md that need other modules. The root's
// TestRecipesPage compares the page with this file.
package recipes

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambdaurl"
	"github.com/hashicorp/go-retryablehttp"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
	"github.com/ganbauth/ganbauth/goredisstore"
	"github.com/ganbauth/ganbauth/internal/testenv"
	"github.com/ganbauth/ganbauth/pgxstore"
)

// The first functions of this file are snippets of docs/recipes.md. What runs them follows.

func prometheusMetrics(registry prometheus.Registerer) func(context.Context, ganbauth.Event) {
	events := promauto.With(registry).NewCounterVec(prometheus.CounterOpts{
		Name: "ganbauth_events_total",
		Help: "What happened to the users' connections.",
	}, []string{"kit", "type", "error"})
	seconds := promauto.With(registry).NewHistogramVec(prometheus.HistogramOpts{
		Name:    "ganbauth_event_duration_seconds",
		Help:    "How long logins and refreshes took.",
		Buckets: []float64{0.1, 0.3, 1, 3, 10, 30},
	}, []string{"kit", "type"})
	return func(_ context.Context, e ganbauth.Event) {
		events.WithLabelValues(e.Kit, string(e.Type), e.ErrorClass).Inc()
		seconds.WithLabelValues(e.Kit, string(e.Type)).Observe(e.Duration.Seconds())
	}
}

func otelMetrics(meter metric.Meter) (func(context.Context, ganbauth.Event), error) {
	seconds, err := meter.Float64Histogram("ganbauth.event.duration", metric.WithUnit("s"),
		metric.WithDescription("What happened to the users' connections, and how long it took."),
		metric.WithExplicitBucketBoundaries(0.1, 0.3, 1, 3, 10, 30))
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, e ganbauth.Event) {
		seconds.Record(ctx, e.Duration.Seconds(), metric.WithAttributes(
			attribute.String("kit", e.Kit),
			attribute.String("type", string(e.Type)),
			attribute.String("error.type", e.ErrorClass),
		))
	}, nil
}

func tracedAndPaced(base http.RoundTripper, tracing trace.TracerProvider, perSecond float64) *http.Client {
	limited := paced{base, rate.NewLimiter(rate.Limit(perSecond), 1)}
	return &http.Client{Transport: otelhttp.NewTransport(limited,
		otelhttp.WithTracerProvider(tracing),
		otelhttp.WithPropagators(propagation.NewCompositeTextMapPropagator()), // no trace headers for the bank
	)}
}

// paced sends requests no faster than the bank allows.
type paced struct {
	http.RoundTripper
	limit *rate.Limiter
}

func (p paced) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := p.limit.Wait(r.Context()); err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, err
	}
	return p.RoundTripper.RoundTrip(r)
}

func transfer(ctx context.Context, api *http.Client, url, orderID string, body []byte) (*http.Response, error) {
	client := retryablehttp.NewClient()
	client.HTTPClient = api // bank.Client(r.Context()) or bank.ClientFor(userID)
	client.RetryMax, client.Logger = 3, nil
	client.CheckRetry = func(ctx context.Context, resp *http.Response, err error) (bool, error) {
		if errors.Is(err, ganbauth.ErrLoginRequired) {
			return false, err
		}
		return retryablehttp.DefaultRetryPolicy(ctx, resp, err)
	}
	client.ErrorHandler = retryablehttp.PassthroughErrorHandler // the bank's last answer
	req, err := retryablehttp.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json;charset=UTF-8")
	req.Header.Set("Idempotency-Key", orderID) // kept with the order: the same after a crash
	return client.Do(req)
}

func lambdaHandler(bank *ganbauth.Kit, app http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		app.ServeHTTP(w, r)
		// Lambda stops the process when this handler returns.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 30*time.Second)
		defer cancel()
		if err := bank.Shutdown(ctx); err != nil {
			slog.ErrorContext(ctx, "a token may be lost", "error", err)
		}
	})
}

func moveTokens(ctx context.Context, from *goredisstore.Store, to *pgxstore.Store) (moved int, err error) {
	const page = 500
	var after ganbauth.Expiry
	for {
		entries, err := from.ExpiringAfter(ctx, after, time.Now().AddDate(10, 0, 0), page)
		if err != nil {
			return moved, err
		}
		for _, after = range entries {
			token, err := from.Load(ctx, after.Key)
			if err == nil {
				err = to.Swap(ctx, after.Key, nil, token) // only where nothing is
			}
			if err == nil || errors.Is(err, ganbauth.ErrSuperseded) {
				moved++
				err = from.Delete(ctx, after.Key) // so that a second run brings nothing back
			}
			if err != nil && !errors.Is(err, ganbauth.ErrTokenNotFound) {
				return moved, err
			}
		}
		if len(entries) < page {
			return moved, nil
		}
	}
}

// What runs the snippets.

func newBox(t *testing.T, opts ganbtest.Options) *ganbtest.Server {
	t.Helper()
	opts.InProcess, opts.RevokeOnReuse = true, true
	box := ganbtest.NewServer(opts)
	t.Cleanup(box.Close)
	return box
}

// newKit returns a kit that reaches the bank with client, or the box's own if it is nil,
// and in which alice is connected.
func newKit(t *testing.T, box *ganbtest.Server, client *http.Client, opts ganbauth.Options) *ganbauth.Kit {
	t.Helper()
	config := box.Config()
	if client != nil {
		config.HTTPClient = client
	}
	connector, err := ganbauth.NewConnector(box.ClientID, box.ClientSecret, box.AuthMethod, config)
	require.NoError(t, err)
	opts.RedirectURI = "https://app.test/bank/callback"
	opts.Scopes = []string{"openid", "offline_access", "private:account"}
	opts.Store = ganbauth.NewMemoryStore()
	opts.Key = func(*http.Request) (string, error) { return "alice", nil }
	opts.Logger = slog.New(slog.DiscardHandler)
	bank, err := ganbauth.New(connector, nil, opts)
	require.NoError(t, err)
	require.NoError(t, bank.SetToken(t.Context(), "alice", box.Token(opts.Scopes...)))
	return bank
}

// refreshThenFail has alice's token refreshed, and then refused because the secret is
// wrong.
func refreshThenFail(t *testing.T, box *ganbtest.Server, bank *ganbauth.Kit) {
	t.Helper()
	time.Sleep(time.Hour)
	_, err := bank.Token(t.Context(), "alice")
	require.NoError(t, err)
	box.Fail(ganbtest.TokenEndpoint, ganbtest.InvalidClient, 1)
	time.Sleep(time.Hour)
	_, err = bank.Token(t.Context(), "alice")
	require.ErrorIs(t, err, ganbauth.ErrUnavailable)
}

func TestPrometheus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		box := newBox(t, ganbtest.Options{})
		refreshThenFail(t, box, newKit(t, box, nil, ganbauth.Options{Observe: prometheusMetrics(registry)}))
		require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP ganbauth_events_total What happened to the users' connections.
# TYPE ganbauth_events_total counter
ganbauth_events_total{error="",kit="bank",type="token_refreshed"} 1
ganbauth_events_total{error="invalid_client",kit="bank",type="refresh_failed"} 1
`), "ganbauth_events_total"))
		n, err := testutil.GatherAndCount(registry, "ganbauth_event_duration_seconds")
		require.NoError(t, err)
		require.Equal(t, 2, n)
	})
}

func TestOpenTelemetryMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader := sdkmetric.NewManualReader()
		observe, err := otelMetrics(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("app"))
		require.NoError(t, err)
		box := newBox(t, ganbtest.Options{})
		refreshThenFail(t, box, newKit(t, box, nil, ganbauth.Options{Observe: observe}))
		var metrics metricdata.ResourceMetrics
		require.NoError(t, reader.Collect(t.Context(), &metrics))
		got := map[string]uint64{}
		for _, p := range metrics.ScopeMetrics[0].Metrics[0].Data.(metricdata.Histogram[float64]).DataPoints {
			got[p.Attributes.Encoded(attribute.DefaultEncoder())] = p.Count
		}
		require.Equal(t, map[string]uint64{
			"error.type=,kit=bank,type=token_refreshed":              1,
			"error.type=invalid_client,kit=bank,type=refresh_failed": 1,
		}, got)
	})
}

// What is traced has no token in it. A request that cannot be sent in time costs nobody
// the connection.
func TestTracedAndPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		recorder := tracetest.NewSpanRecorder()
		box := newBox(t, ganbtest.Options{})
		tracing := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
		sent := &headers{RoundTripper: box.Client().Transport}
		bank := newKit(t, box, tracedAndPaced(sent, tracing, 1), ganbauth.Options{})
		before, err := bank.Token(t.Context(), "alice")
		require.NoError(t, err)
		box.ExpireAccessTokens()
		started := time.Now()
		for range 3 {
			resp, err := bank.ClientFor("alice").Get(box.APIBase() + "/accounts?accountId=101011234567")
			require.NoError(t, err)
			resp.Body.Close()
			require.Equal(t, 200, resp.StatusCode)
		}
		require.Equal(t, 4*time.Second, time.Since(started), "five requests, one of them a refresh and one refused")
		after, err := bank.Token(t.Context(), "alice")
		require.NoError(t, err)
		require.NotEqual(t, before.AccessToken, after.AccessToken)

		var shown bytes.Buffer
		require.Len(t, recorder.Ended(), 5)
		for _, span := range recorder.Ended() {
			for _, a := range span.Attributes() {
				shown.WriteString(string(a.Key) + "=" + a.Value.String() + "\n")
			}
		}
		require.Contains(t, shown.String(), "/accounts?accountId=101011234567")
		require.Contains(t, shown.String(), "http.response.status_code=401")
		for _, secret := range []string{before.AccessToken, after.AccessToken, box.ClientSecret} {
			require.NotContains(t, shown.String(), secret)
		}
		require.NotContains(t, sent.names(), "Traceparent")

		// The limit is used up: the API calls give up, and so does a refresh that is due
		// then.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		var wg sync.WaitGroup
		for range 60 {
			wg.Go(func() {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, box.APIBase()+"/accounts", nil)
				if err != nil {
					t.Error(err)
					return
				}
				if resp, err := bank.ClientFor("alice").Do(req); err == nil {
					resp.Body.Close()
				}
			})
		}
		wg.Wait()
		time.Sleep(time.Hour)
		_, err = bank.Token(t.Context(), "alice")
		require.NoError(t, err)
		require.Zero(t, box.Reuses())
	})
}

// headers keeps the names of the headers that are sent.
type headers struct {
	http.RoundTripper
	mu   sync.Mutex
	sent []string
}

func (h *headers) RoundTrip(r *http.Request) (*http.Response, error) {
	h.mu.Lock()
	for name := range r.Header {
		h.sent = append(h.sent, name)
	}
	h.mu.Unlock()
	return h.RoundTripper.RoundTrip(r)
}

func (h *headers) names() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sent
}

// A transfer whose answer is lost, or that a busy bank refuses, is sent again with the
// same key.
func TestTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var keys []string
		box := newBox(t, ganbtest.Options{API: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil || string(body) != `{"amount":"1000"}` {
				t.Errorf("%s %v", body, err)
			}
			keys = append(keys, r.Header.Get("Idempotency-Key"))
			w.WriteHeader(http.StatusCreated)
		})})
		bank := newKit(t, box, nil, ganbauth.Options{})
		send := func() (*http.Response, error) {
			return transfer(t.Context(), bank.ClientFor("alice"), box.APIBase()+"/transfer", "order-1", []byte(`{"amount":"1000"}`))
		}
		box.ExpireAccessTokens()
		box.Fail(ganbtest.API, ganbtest.Fault{}, 1) // refused for its token, and sent again by the kit
		box.Fail(ganbtest.API, ganbtest.AnswerLost, 1)
		box.Fail(ganbtest.API, ganbtest.RateLimited, 1)
		resp, err := send()
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, http.StatusCreated, resp.StatusCode)
		require.Equal(t, []string{"order-1", "order-1"}, keys, "the one whose answer was lost, and the last")

		box.Fail(ganbtest.API, ganbtest.Maintenance, -1)
		resp, err = send()
		require.NoError(t, err)
		defer resp.Body.Close()
		require.ErrorContains(t, ganbauth.CheckResponse(resp), "WG_ERR_300", "the bank's last answer")

		require.NoError(t, bank.Disconnect(t.Context(), "alice"))
		started := time.Now()
		_, err = send()
		require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
		require.Zero(t, time.Since(started), "not tried again")
	})
}

// The generated code is nobody's to read, and so not in the repository: the test makes a
// module of testdata/clients, with what the generators make of openapi.yaml, and runs the
// tests there.
func TestGeneratedClients(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS("testdata/clients")))
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, words := range []string{
		"mod init clients",
		"mod edit -require github.com/ganbauth/ganbauth@v0.1.0 -replace github.com/ganbauth/ganbauth=" + root,
		"run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -generate types,client -package oapi -o oapi/oapi.go openapi.yaml",
		"run github.com/ogen-go/ogen/cmd/ogen@v1.24.0 --config ogen.yml --target ogen --package ogen openapi.yaml",
		"get github.com/oapi-codegen/runtime@v1.8.0 github.com/ogen-go/ogen@v1.24.0",
		"mod tidy",
		"test -count=1 .",
	} {
		out, err := run(strings.Fields(words)...)
		if err != nil && os.Getenv("CI") != "true" && strings.Contains(out, "dial tcp") {
			t.Skip("SKIP: there is no network to get the generators from")
		}
		require.NoError(t, err, "go %s: %s", words, out)
	}
}

// onLambda calls the handler as Lambda does.
func onLambda(handler http.Handler) http.Handler {
	function := lambdaurl.Wrap(handler)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		event := &events.LambdaFunctionURLRequest{RawPath: r.URL.EscapedPath(), RawQueryString: r.URL.RawQuery, Headers: map[string]string{}}
		event.RequestContext.DomainName, event.RequestContext.HTTP.Method = r.Host, r.Method
		for name := range r.Header {
			event.Headers[strings.ToLower(name)] = r.Header.Get(name)
		}
		resp, err := function(r.Context(), event)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		for name, value := range resp.Headers {
			w.Header().Set(name, value)
		}
		w.Header()["Set-Cookie"] = resp.Cookies
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	})
}

// The process is not stopped before a refresh has ended that outlived its request.
func TestLambda(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		box := newBox(t, ganbtest.Options{})
		bank := newKit(t, box, nil, ganbauth.Options{})
		mux := http.NewServeMux()
		mux.Handle("/bank/login", bank.LoginHandler())
		mux.Handle("/bank/callback", bank.CallbackHandler())
		mux.Handle("/accounts", bank.RequireToken(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
		application := onLambda(lambdaHandler(bank, mux))
		box.Login(application, "https://app.test/bank/login")

		time.Sleep(time.Hour - 30*time.Second)
		box.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(20*time.Second), 1)
		started := time.Now()
		recorder := httptest.NewRecorder()
		application.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "https://app.test/accounts", nil))
		require.Equal(t, 200, recorder.Code)
		require.Equal(t, 20*time.Second, time.Since(started))
		token, err := bank.Token(t.Context(), "alice")
		require.NoError(t, err)
		require.Greater(t, time.Until(token.ExpiresAt), 50*time.Minute)
		require.Equal(t, 1, box.Refreshes())
	})
}

func TestMoveTokens(t *testing.T) {
	server, ctx := testenv.Redis(t), t.Context()
	_, dsn := testenv.Postgres(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr})
	t.Cleanup(func() { client.Close() })
	pool, err := pgxpool.New(ctx, dsn)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	from, to := goredisstore.New(client, goredisstore.Options{}), pgxstore.New(pool, pgxstore.Options{})
	require.NoError(t, to.Migrate(ctx))

	box := newBox(t, ganbtest.Options{})
	opts := ganbauth.Options{
		RedirectURI: "https://app.test/bank/callback", Scopes: []string{"openid", "offline_access"},
		Store: from, Key: func(*http.Request) (string, error) { return "alice", nil },
		EncryptionKeys: [][]byte{bytes.Repeat([]byte("k"), 32)}, Logger: slog.Default(),
	}
	before, err := ganbauth.New(box.Connector(), scs.New(), opts)
	require.NoError(t, err)
	for _, id := range []string{"alice", "bob"} {
		require.NoError(t, before.SetToken(ctx, id, box.Token("offline_access")))
	}
	moved, err := moveTokens(ctx, from, to)
	require.NoError(t, err)
	require.Equal(t, 2, moved)

	opts.Store = to
	after, err := ganbauth.New(box.Connector(), scs.New(), opts)
	require.NoError(t, err)
	box.ExpireAccessTokens()
	for _, id := range []string{"alice", "bob"} {
		resp, err := after.ClientFor(id).Get(box.APIBase() + "/accounts")
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, 200, resp.StatusCode)
	}
	require.NoError(t, after.Disconnect(ctx, "bob"))
	moved, err = moveTokens(ctx, from, to) // by mistake, when the application runs again
	require.NoError(t, err)
	require.Zero(t, moved)
	_, err = after.Token(ctx, "bob")
	require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
	require.Zero(t, box.Reuses())
	_, err = after.Token(ctx, "alice")
	require.NoError(t, err)
}
