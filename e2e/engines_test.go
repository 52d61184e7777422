package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth/ganbtest"
)

// Each case holds in each engine, whether an application keeps its users in a session or
// asks for a key, and whether its cookie is Lax or Strict.
var cases = []struct {
	name  string
	test  func(*world)
	modes []mode
	nginx bool
}{
	{"connect and log out", testConnect, modes, false},
	{"connect without a session", testConnectWithoutSession, modes, false},
	{"deny", testDeny, modes, false},
	{"deny one more scope", testDenyScope, modes, false},
	{"E12 five tabs", testFiveTabs, modes, false},
	{"E9 back to the consent page", testBackToConsent, modes, false},
	{"E10 from another site", testFromElsewhere, modes, false},
	{"E1 E11 a worker", func(w *world) { testWorker(w, passThrough) }, modes, false},
	{"E1 E11 a worker with preload", func(w *world) { testWorker(w, preload) }, modes, false},
	{"htmx2", func(w *world) { testHTMX(w, "htmx2") }, modes, false},
	{"htmx4", func(w *world) { testHTMX(w, "htmx4") }, strict, false},
	{"fetch", testFetch, strict, false},
	{"E4 a form", testForm, modes, false},
	{"D2 long paths behind nginx", testLongPaths, strict, true},
}

func TestEngines(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			b := e.start(t, true)
			failures := 0
			for _, c := range cases {
				for _, m := range c.modes {
					if !t.Run(c.name+", "+m.name, func(t *testing.T) { c.test(newWorld(t, b, m, c.nginx)) }) {
						failures++
					}
					require.Less(t, failures, 6, "each takes its time to fail")
				}
			}
		})
	}
}

// What pages say: the bank's, and the kit's.
const (
	consent        = "Choose what it may do"
	connectIt      = "Connect your bank account"
	nobody         = "Please log in first"
	notConnected   = "Not connected"
	notFinished    = "couldn't finish connecting"
	morePermission = "More permission is needed"
	nothingChanged = "Nothing has changed"
)

func testConnect(w *world) {
	v := w.connected()
	v.open(w.app + "/p/2")
	v.see("page 2, cart full")
	require.Equal(w, w.app+"/p/2", v.location())
	require.Equal(w, 1, w.box.Count(ganbtest.TokenEndpoint))

	v.open(w.app + "/")
	v.see("shop")
	v.click("Log out")
	v.see("bye")
	v.open(w.app + "/")
	v.see("shop")
	v.open(w.app + "/p/1")
	v.see(consent)
	v.click("Approve")
	v.see("page 1, cart full")
}

// The first page that a browser asks for is a protected one.
func testConnectWithoutSession(w *world) {
	v := newView(w.T, w.browser)
	v.open(w.app + "/p/1")
	if w.mode.key {
		v.see(nobody)
		return
	}
	v.see(consent)
	v.click("Approve")
	v.see("page 1")
}

func testDeny(w *world) {
	v := w.visit()
	v.open(w.app + "/p/1")
	v.see(consent)
	v.click("Deny")
	v.see(notConnected)
	require.Contains(w, v.location(), "/bank/callback?")
	v.reload()
	v.see(notFinished) // once more, and nothing new
	v.open(w.app + "/p/1")
	v.see(consent)
	v.click("Approve")
	v.see("page 1, cart full")
}

// A user who is connected, and does not allow more, stays connected.
func testDenyScope(w *world) {
	v := w.connected()
	v.open(w.app + "/transfer/a")
	v.see("private:transfer")
	v.click("Deny")
	v.see(nothingChanged)
	v.open(w.app + "/p/2")
	v.see("page 2, cart full")

	v.open(w.app + "/transfer/b")
	v.see("private:transfer")
	v.untick("private:transfer")
	v.click("Approve")
	v.see(morePermission) // and no second consent page unasked
	v.open(w.app + "/p/3")
	v.see("page 3, cart full")
	v.open(w.app + "/transfer/c")
	v.see("private:transfer")
	v.click("Approve")
	v.see("page c, cart full")
}

// A browser that starts again loads all its tabs at once, and a hasty user approves them
// all.
func testFiveTabs(w *world) {
	views := []*view{w.visit()}
	for len(views) < 5 {
		views = append(views, newView(w.T, w.browser))
	}
	for i, v := range views {
		v.open(fmt.Sprintf("%s/p/%d", w.app, i))
	}
	for _, v := range views {
		v.see(consent)
	}
	at := time.Now().Add(500 * time.Millisecond).UnixMilli()
	for _, v := range views {
		v.run(fmt.Sprintf(`void setTimeout(() => document.querySelector("[value=approve]").click(), %d - Date.now())`, at))
	}
	for i, v := range views {
		v.see(fmt.Sprintf("page %d, cart full", i))
	}
	if !w.mode.key {
		return
	}
	// At the end of the token's life they ask for one refresh together.
	w.expire()
	for i, v := range views {
		v.open(fmt.Sprintf("%s/p/again-%d", w.app, i))
	}
	for i, v := range views {
		v.see(fmt.Sprintf("page again-%d, cart full", i))
	}
	require.Equal(w, 1, w.box.Refreshes())
}

// Back at the consent page, which the bank answers once more.
func testBackToConsent(w *world) {
	v := w.connected()
	exchanges := w.box.Count(ganbtest.TokenEndpoint)
	v.back()
	v.see(consent)
	v.click("Approve")
	v.see("page ")
	require.Equal(w, exchanges, w.box.Count(ganbtest.TokenEndpoint), "no code is used twice")
	v.open(w.app + "/p/2")
	v.see("page 2, cart full")
}

// A user who is connected comes by a link of another site, by an address that redirects
// here, and back from there.
func testFromElsewhere(w *world) {
	v := w.connected()
	v.open(w.other + "/")
	v.see("elsewhere")
	v.click("Link")
	v.see("page 1, cart full")
	v.open(w.other + "/")
	v.see("elsewhere")
	v.open(w.other + "/short")
	v.see("page 1, cart full")
	v.open(w.other + "/")
	v.see("elsewhere")
	v.back()
	v.see("page 1, cart full")
	require.Equal(w, 1, w.box.Count(ganbtest.TokenEndpoint))
}

const (
	passThrough = `addEventListener("fetch", e => e.respondWith(fetch(e.request)))`
	preload     = `addEventListener("activate", e => e.waitUntil(registration.navigationPreload.enable()))
addEventListener("fetch", e => e.respondWith((async () => await e.preloadResponse || fetch(e.request))()))`
)

// A service worker stands between the browser and the application.
func testWorker(w *world, script string) {
	w.mux.HandleFunc("/worker.js", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/javascript")
		_, _ = rw.Write([]byte(`addEventListener("install", () => skipWaiting()); ` + script))
	})
	v := w.visit()
	v.run(`navigator.serviceWorker.register("/worker.js").then(() => navigator.serviceWorker.ready).then(async r => {
		while (r.active.state != "activated") await new Promise(done => setTimeout(done, 10))
	})`)
	v.open(w.app + "/p/1")
	v.see(consent)
	v.click("Deny")
	v.see(notConnected)
	v.open(w.app + "/bank/login?return_to=/p/2")
	v.see(consent)
	v.click("Approve")
	v.see("page 2, cart full")
	require.Equal(w, "true", v.run("navigator.serviceWorker.controller != null"))
	v.back()
	v.see(consent)
	v.click("Approve")
	v.see("page ")
	v.open(w.other + "/")
	v.see("elsewhere")
	v.click("Link")
	v.see("page 1, cart full")
}

// A page that HTMX asks a part for is left for the bank, and come back to.
func testHTMX(w *world, version string) {
	nodeModules(w.T)
	w.mux.HandleFunc("/htmx.js", func(rw http.ResponseWriter, r *http.Request) {
		http.ServeFile(rw, r, "node_modules/"+version+"/dist/htmx.min.js")
	})
	w.mux.HandleFunc("/htmx", func(rw http.ResponseWriter, _ *http.Request) {
		w.page(rw, `<script src="/htmx.js"></script><button hx-get="/p/part" hx-target="#part">Balance</button>
			<a href="/bank/login" hx-boost="true">Connect</a><p id="part">nothing yet`)
	})
	v := w.visit()
	v.open(w.app + "/htmx?a=1&b=2")
	v.see("nothing yet")
	v.click("Balance")
	v.see(consent)
	v.click("Approve")
	v.see("nothing yet")
	require.Equal(w, w.app+"/htmx?a=1&b=2", v.location())
	v.click("Balance")
	v.see("page part, cart full")
	v.click("Connect") // boosted: HTMX asks for the login itself
	v.see(consent)
	v.click("Approve")
	v.see("page home, cart full")
}

// A script is told, and not led to a page that it could not show.
func testFetch(w *world) {
	v := w.visit()
	for _, accept := range []string{"*/*", "application/json", "text/html"} {
		require.Equal(w, `"401,false,application/problem+json; charset=utf-8,Unauthorized"`, v.run(fmt.Sprintf(
			`fetch("/p/1", {headers: {Accept: %q}}).then(async r =>
			[r.status, r.redirected, r.headers.get("Content-Type"), (await r.json()).title].join())`, accept)))
	}
	require.Zero(w, w.box.Count(ganbtest.Authorization))
}

// A form whose target takes nothing but POST, sent after the connection has ended, leads
// back to its own page.
func testForm(w *world) {
	v := w.connected()
	v.open(w.app + "/form?a=1")
	v.see("Pay")
	v.run(`fetch("/bank/logout", {method: "POST"}).then(() => 0)`)
	v.click("Pay")
	v.see(connectIt)
	v.click("Back to the previous page")
	v.see(consent)
	v.click("Approve")
	v.see("Pay")
	require.Equal(w, w.app+"/form?a=1", v.location())
	v.click("Pay")
	v.see("paid")
}

// Logins that the user does not finish, with paths of any length, leave no cookies behind
// that a proxy refuses.
func testLongPaths(w *world) {
	v := w.visit()
	for i := range 12 {
		path := fmt.Sprintf("/p/%d?q=%s", i, strings.Repeat("x", []int{50, 500, 1990}[i%3]))
		switch i % 4 {
		case 1:
			path = "/bank/login?return_to=" + url.QueryEscape(path)
		case 2, 3: // another site leads there, as often as it likes
			v.open(w.other + "/to?" + url.QueryEscape("/bank/login?return_to="+url.QueryEscape(path)))
			v.see("elsewhere")
			v.click("Link")
			v.see(consent)
			continue
		}
		v.open("about:blank")
		v.open(w.app + path)
		v.see(consent)
	}
	v.click("Approve")
	v.see("page ")

	views := []*view{v}
	for len(views) < 5 {
		views = append(views, newView(w.T, w.browser))
	}
	for i, v := range views {
		v.open(fmt.Sprintf("%s/transfer/%d?q=%s", w.app, i, strings.Repeat("x", 1900)))
	}
	for _, v := range views {
		v.see("private:transfer")
	}
	v.click("Approve")
	v.see("page ")
	v.open(w.app + "/")
	v.see("shop")
}

// Without cookies there is no session and no login, and no page that reloads itself
// forever.
func TestEnginesWithoutCookies(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			b := e.start(t, false)
			for _, m := range modes {
				t.Run(m.name, func(t *testing.T) {
					w := newWorld(t, b, m, false)
					v := newView(t, b)
					arrive := func(page string, most int, how func()) {
						t.Helper()
						before := w.asked()
						how()
						v.see(page)
						require.LessOrEqual(t, w.asked()-before, most)
					}
					arrives := consent
					if m.key {
						arrives = nobody
					}
					arrive(arrives, 2, func() { v.open(w.app + "/p/1") })
					if !m.key {
						arrive("cookies", 3, func() { v.click("Approve") })
					}
					away := func() { arrive("elsewhere", 0, func() { v.open(w.other + "/") }) }
					away() // or the page before is taken for the next one
					arrive(arrives, 2, func() { v.open(w.other + "/short") })
					away()
					arrive(arrives, 2, func() { v.click("Link") })
				})
			}
		})
	}
}

// asked counts the requests to the application's pages.
func (w *world) asked() (n int) {
	for _, s := range w.requests() {
		if strings.HasPrefix(s.site, "app") && s.URL.Path != "/favicon.ico" {
			n++
		}
	}
	return n
}
