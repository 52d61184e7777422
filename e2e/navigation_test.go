package e2e

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth/ganbtest"
)

func location(t *testing.T, ctx context.Context) string {
	t.Helper()
	url, err := chromedp.Run(ctx, chromedp.Evaluate[string]("location.href"))
	require.NoError(t, err)
	return url
}

func evaluate[T any](t *testing.T, ctx context.Context, script string) T {
	t.Helper()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	require.NoError(t, err)
	return v
}

// press finds the link or button by Tab, sees that its focus shows, and presses Enter.
func press(t *testing.T, ctx context.Context, label string) {
	t.Helper()
	for range 20 {
		require.NoError(t, chromedp.Do(ctx, chromedp.KeyEvent(kb.Tab)))
		focus := evaluate[[]string](t, ctx, `[document.activeElement.innerText, getComputedStyle(document.activeElement).outlineStyle]`)
		if strings.TrimSpace(focus[0]) == label {
			require.NotEqual(t, "none", focus[1], label)
			require.NoError(t, chromedp.Do(ctx, chromedp.KeyEvent(kb.Enter)))
			return
		}
	}
	require.Fail(t, "the keyboard does not reach "+label)
}

// A browser that looks ahead begins no login, and the link works when it is clicked.
func TestPrefetch(t *testing.T) {
	for name, hint := range map[string]string{
		"link":      `<link rel="prefetch" href="/bank/login">`,
		"prefetch":  `<script type="speculationrules">{"prefetch":[{"urls":["/bank/login"],"eagerness":"immediate"}]}</script>`,
		"prerender": `<script type="speculationrules">{"prerender":[{"urls":["/bank/login"],"eagerness":"immediate"}]}</script>`,
	} {
		t.Run(name, func(t *testing.T) {
			ctx := newBrowser(t)
			w := newWorld(t, nil, modes[0], false)
			w.mux.HandleFunc("/ahead", func(rw http.ResponseWriter, _ *http.Request) {
				w.page(rw, hint+`<a href="/bank/login">Connect</a>`)
			})
			open(t, ctx, w.app+"/ahead")
			see(t, ctx, "Connect", "")
			var ahead []served
			require.Eventually(t, func() bool {
				ahead = slices.DeleteFunc(w.requests(), func(s served) bool { return s.Header.Get("Sec-Purpose") == "" })
				return len(ahead) > 0
			}, 20*time.Second, 10*time.Millisecond)
			for _, s := range ahead {
				require.Equal(t, "/bank/login", s.URL.Path)
				require.Equal(t, http.StatusForbidden, s.status)
			}
			require.Zero(t, w.box.Count(ganbtest.Authorization))
			click(t, ctx, "Connect")
			see(t, ctx, consent, "")
			click(t, ctx, "Approve")
			see(t, ctx, "page home", "")
		})
	}
}

func disableJavaScript(t *testing.T, ctx context.Context) {
	t.Helper()
	_, err := chromedp.Call(ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	require.NoError(t, err)
}

// No page of the kit needs a script, not even the one that fetches a strict session's
// cookie.
func TestWithoutJavaScript(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			ctx := newBrowser(t)
			w := newWorld(t, nil, m, false)
			disableJavaScript(t, ctx)
			open(t, ctx, w.app)
			see(t, ctx, "shop", "")
			require.Equal(t, "Shop", evaluate[string](t, ctx, "document.title"), "the page's own script did not run")
			open(t, ctx, w.app+"/p/1")
			see(t, ctx, consent, "")
			click(t, ctx, "Deny")
			see(t, ctx, notConnected, "")
			click(t, ctx, "Connect again")
			see(t, ctx, consent, "")
			click(t, ctx, "Approve")
			see(t, ctx, "page 1, cart full", "")
		})
	}
}
