// Bare sockets in Go's own way, a goroutine for each connection: what another language with a runtime needs.
//
//	pingpong serve TRANSPORT FD          FD is a listening socket
//	pingpong drive TRANSPORT PATH|PORT   commands on standard input, one a line; answers on standard output
//
// The talk is that of pingpong.c.
package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strconv"
	"time"
)

const headerSize = 16

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func answer(conn net.Conn) {
	defer conn.Close()
	header := make([]byte, headerSize)
	number := make([]byte, 8)
	for {
		if _, err := io.ReadFull(conn, header); err != nil {
			return
		}
		size := binary.LittleEndian.Uint32(header[4:])
		count := binary.LittleEndian.Uint64(header[8:])
		data := make([]byte, size)
		binary.LittleEndian.PutUint64(number, uint64(size))
		for ; count > 0; count-- {
			if _, err := io.ReadFull(conn, data); err != nil {
				return
			}
			back := data
			if header[0] == 'T' {
				back = number
			}
			if _, err := conn.Write(back); err != nil {
				return
			}
		}
	}
}

func serve(fd string) {
	number, err := strconv.Atoi(fd)
	check(err)
	listener, err := net.FileListener(os.NewFile(uintptr(number), "listener"))
	check(err)
	go func() { // the run is gone: nobody is left who wants an answer
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for {
		conn, err := listener.Accept()
		check(err)
		go answer(conn) // TCP_NODELAY is Go's default
	}
}

func reply(out *bufio.Writer, data []byte) {
	binary.Write(out, binary.LittleEndian, uint64(len(data)))
	out.Write(data)
	check(out.Flush())
}

func drive(transport, target string) {
	network := "unix"
	if transport == "tcp" {
		network, target = "tcp", "127.0.0.1:"+target
	}
	conn, err := net.Dial(network, target)
	check(err)
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		var action string
		var size, count int
		if fields, _ := fmt.Sscan(line, &action, &size, &count); fields < 2 {
			log.Fatal("no command")
		}
		if action == "echo" {
			count = 1
		}
		what := byte('E')
		if action == "transfer" {
			what = 'T'
		}
		header, data, back := make([]byte, headerSize), make([]byte, size), make([]byte, size)
		header[0] = what
		binary.LittleEndian.PutUint32(header[4:], uint32(size))
		binary.LittleEndian.PutUint64(header[8:], uint64(count))
		if action == "echo" {
			_, err = io.ReadFull(in, data)
			check(err)
		}
		if what == 'T' {
			back = back[:8]
		}
		_, err = conn.Write(header)
		check(err)
		times := make([]byte, 8*count)
		for i := 0; i < count; i++ {
			begin := time.Now()
			_, err = conn.Write(data)
			check(err)
			_, err = io.ReadFull(conn, back)
			check(err)
			binary.LittleEndian.PutUint64(times[8*i:], uint64(time.Since(begin).Nanoseconds()))
			if what == 'T' && binary.LittleEndian.Uint64(back) != uint64(size) {
				log.Fatalf("the server confirmed %d bytes, not %d", binary.LittleEndian.Uint64(back), size)
			}
		}
		if action == "echo" {
			times = back
		}
		reply(out, times)
	}
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 4 {
		log.Fatal("usage: pingpong serve|drive TRANSPORT FD|PATH|PORT")
	}
	if os.Args[1] == "serve" {
		serve(os.Args[3])
	} else {
		drive(os.Args[2], os.Args[3])
	}
}
