"""The operator as a real process, and the life of jobs as a test plays it. (The folder operator/ cannot be a
package: its name is the standard library's.)"""
