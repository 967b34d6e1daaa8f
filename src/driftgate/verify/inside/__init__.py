"""Scripts that run in the processes of kind `code`: the answer's, and its tests'. They load nothing else of the
package."""
