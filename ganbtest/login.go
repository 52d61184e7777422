package ganbtest

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"html"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ganbauth/ganbauth"
)

// Connector returns a new connector of the client to this bank. It has AuthMethod, which
// Options chose.
func (s *Server) Connector() *ganbauth.Connector {
	c, err := ganbauth.NewConnector(s.ClientID, s.ClientSecret, s.AuthMethod, s.Config())
	must(err)
	return c
}

// Browser returns a client that is a user's browser: it keeps cookies, follows redirects
// and refreshes, and opens pages with the headers of a navigation. What it asks of the
// bank goes to the bank, and everything else to the application, in process. The
// application's origin is whatever its RedirectURI says, https://app.test for instance;
// handlers see TLS where it is https. A request that has an Accept header of its own is
// sent as it is: set one to send what a page's script or a program would.
func (s *Server) Browser(application http.Handler) *http.Client {
	jar, err := cookiejar.New(nil)
	must(err)
	return &http.Client{Jar: jar, Transport: &browser{s, inProcess{application}}}
}

// Login connects a user to the application and returns the user's browser, see
// [Server.Browser]:
//
//	browser := bank.Login(app, "https://app.test/bank/login")
//	resp, err := browser.Get("https://app.test/balance")
//
// It opens loginURL, which leads to the bank, approves everything that is asked for, also
// where Options.Consent is set, and ends with the callback's answer. It panics if that is
// not the redirect of a login that has succeeded, and says what was answered instead.
// Where users log in to the application first, use [Server.Browser] and open the pages one
// after the other: it follows a login to the bank and back.
func (s *Server) Login(application http.Handler, loginURL string) *http.Client {
	client := s.Browser(application)
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	next, atBank, referer := loginURL, false, ""
	for range 10 {
		req, err := http.NewRequest(http.MethodGet, next, nil)
		must(err)
		if referer != "" {
			req.Header.Set("Referer", referer)
		}
		resp, err := client.Do(req)
		if err != nil {
			// A url.Error would show the code and the state.
			var cause *url.Error
			errors.As(err, &cause)
			panic(fmt.Sprintf("ganbtest: login: GET %s: %v", withoutQuery(req.URL), cause.Err))
		}
		page, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		location, err := resp.Location()
		switch {
		case s.isBank(req.URL) && err != nil && resp.StatusCode == http.StatusOK:
			location, err = url.Parse(s.Approve(next)) // the consent page
			must(err)
		case err != nil || resp.StatusCode >= 400:
			panic(fmt.Sprintf("ganbtest: login: GET %s answered %s%s", withoutQuery(req.URL), resp.Status, paragraph(page)))
		case atBank && !s.isBank(req.URL) && location.Path != req.URL.Path:
			client.CheckRedirect = nil
			return client
		}
		atBank = atBank || s.isBank(req.URL)
		referer, next = withoutQuery(req.URL), location.String()
	}
	panic("ganbtest: login: ten redirects, and none of them to a callback")
}

// paragraph returns the first one of a page, which says what is wrong.
func paragraph(page []byte) string {
	_, rest, _ := strings.Cut(string(page), "<p>")
	text, _, ok := strings.Cut(rest, "</p>")
	if !ok {
		return ""
	}
	return ": " + html.UnescapeString(text)
}

func (s *Server) isBank(u *url.URL) bool { return u.Scheme+"://"+u.Host == s.URL }

// withoutQuery leaves out codes and states.
func withoutQuery(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: cmp.Or(u.Path, "/")}).String()
}

// browser is the transport of a user's browser.
type browser struct {
	bank        *Server
	application inProcess
}

// RoundTrip sends the request to the bank or to the application, with a navigation's
// headers.
func (b *browser) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Header.Get("Accept") == "" && req.Header.Get("Sec-Fetch-Mode") == "" {
		req = req.Clone(req.Context())
		navigation(req)
	}
	if b.bank.isBank(req.URL) {
		return b.bank.client.Transport.RoundTrip(req)
	}
	resp, err := b.application.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	// A page that has itself loaded again. The kit does so to get a cookie that stayed
	// behind or is on its way.
	if pause, to, ok := strings.Cut(resp.Header.Get("Refresh"), "; url="); ok {
		seconds, _ := strconv.Atoi(pause)
		select {
		case <-time.After(time.Duration(seconds) * time.Second):
		case <-req.Context().Done():
			resp.Body.Close()
			return nil, req.Context().Err()
		}
		resp.StatusCode, resp.Status = http.StatusSeeOther, "303 See Other"
		resp.Header.Set("Location", to)
	}
	return resp, nil
}

// navigation sets what browsers send when a page is opened or a form is sent.
func navigation(req *http.Request) {
	origin := req.URL.Scheme + "://" + req.URL.Host
	site := "none"
	if referer, err := url.Parse(req.Referer()); err == nil && referer.Host != "" {
		site = "cross-site"
		if referer.Scheme+"://"+referer.Host == origin {
			site = "same-origin"
		}
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead && site == "none" {
		site = "same-origin"
		req.Header.Set("Origin", origin)
	}
	for name, value := range map[string]string{
		"Accept":                    "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
		"Sec-Fetch-Site":            site,
		"Sec-Fetch-Mode":            "navigate",
		"Sec-Fetch-Dest":            "document",
		"Sec-Fetch-User":            "?1",
		"Upgrade-Insecure-Requests": "1",
	} {
		req.Header.Set(name, value)
	}
}

// inProcess is a transport that calls a handler on a goroutine of its own, as a network
// would, and does what net/http does on both sides of one.
type inProcess struct{ handler http.Handler }

// RoundTrip returns the handler's answer, or leaves when the request's context ends. The
// handler then goes on by itself, and its own context has ended. A handler's panic is
// logged, and ends the connection.
func (t inProcess) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(context.Background()) // a client's values stay with the client
	stop := context.AfterFunc(req.Context(), cancel)
	in := received(ctx, req)
	defer in.Body.Close()
	rec := httptest.NewRecorder()
	done := make(chan bool, 1)
	go func() {
		finished := false
		defer func() {
			stop()
			cancel()
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				log.Printf("ganbtest: panic serving %s: %v\n%s", withoutQuery(req.URL), p, debug.Stack())
			}
			done <- finished
		}()
		t.handler.ServeHTTP(recorder{rec}, in)
		finished = true
	}()
	select {
	case finished := <-done:
		if !finished {
			return nil, errConnectionCut
		}
		resp := rec.Result()
		resp.Request, resp.Header = req, onTheWire(resp.Header)
		if req.Method == http.MethodHead || resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified {
			resp.Body = http.NoBody
		}
		return resp, nil
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
}

// received returns req as a server has it.
func received(ctx context.Context, req *http.Request) *http.Request {
	in := req.Clone(ctx)
	in.RequestURI = req.URL.RequestURI()
	in.URL.Scheme, in.URL.Host, in.URL.User, in.URL.Fragment, in.URL.RawFragment = "", "", nil, "", ""
	in.URL.Path = cmp.Or(in.URL.Path, "/")
	in.RemoteAddr = "192.0.2.1:1234"
	in.Host = cmp.Or(req.Host, req.URL.Host)
	in.Header = onTheWire(req.Header)
	in.GetBody, in.Response = nil, nil
	if req.URL.Scheme == "https" {
		in.TLS = &tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true, ServerName: req.URL.Hostname()}
	}
	switch {
	case in.Body == nil:
		in.Body = http.NoBody
	case in.Body != http.NoBody && in.ContentLength == 0:
		in.ContentLength = -1 // it is not known
	}
	return in
}

// onTheWire returns a header as the other side sees it, however this one spells names.
func onTheWire(sent http.Header) http.Header {
	h := http.Header{}
	for _, name := range slices.Sorted(maps.Keys(sent)) {
		for _, value := range sent[name] {
			h.Add(name, value)
		}
	}
	return h
}

// recorder leaves out what a handler sends before its answer, such as 103 Early Hints.
type recorder struct{ *httptest.ResponseRecorder }

func (r recorder) WriteHeader(status int) {
	if status < 100 || status >= 200 || status == http.StatusSwitchingProtocols {
		r.ResponseRecorder.WriteHeader(status)
	}
}
