// SPDX-License-Identifier: GPL-2.0-only OR MIT

// Reads a list as Go programs do: reader-go MODE LIST OUT
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
)

func check(err error) {
	if err != nil {
		fmt.Printf("[%v]\n", err)
		os.Exit(1)
	}
}

func opened(path string) (*os.File, int64) {
	file, err := os.Open(path)
	check(err)
	info, err := file.Stat()
	check(err)
	return file, info.Size()
}

func show(data []byte, err error) {
	os.Stdout.Write(data)
	check(err)
}

func main() {
	list, out := os.Args[2], os.Args[3]
	file, size := opened(list)
	switch os.Args[1] {
	case "readfile":
		show(os.ReadFile(list))
	case "statfull":
		data := make([]byte, size)
		count, err := io.ReadFull(file, data)
		show(data[:count], err)
	case "readall":
		show(io.ReadAll(file))
	case "copy":
		into, err := os.Create(out)
		check(err)
		count, err := io.Copy(into, file)
		fmt.Println(count)
		check(err)
		check(into.Close())
		show(os.ReadFile(out))
	case "scan":
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			fmt.Println(lines.Text())
		}
		check(lines.Err())
	case "section":
		show(io.ReadAll(io.NewSectionReader(file, 0, size)))
	case "seek":
		end, err := file.Seek(0, io.SeekEnd)
		fmt.Println(end)
		check(err)
	default:
		os.Exit(2)
	}
}
